package hypervisor

import "context"

// Meter tells what a VMM counts of its own work.
type Meter interface {
	// Counters are sums since the VM's start, at most one with a name; what the VMM does not count is not among them. It waits for
	// the VMM until ctx ends. Of one that did not answer in time it says so at once, Unavailable, until the answer comes: a
	// VMM that hangs costs one caller's time, and nothing else.
	Counters(ctx context.Context) ([]Counter, error)
}

// Counter is a sum that never falls.
type Counter struct {
	CounterName
	Value uint64
}

// CounterName says what is counted.
type CounterName struct {
	Kind CounterKind
	// Part of the VM that it is about: one of the constants below.
	Part string
	// Direction is In, towards the guest, or Out, or empty where there is none.
	Direction string
}

// CounterKind is what is counted of a part.
type CounterKind string

const (
	// Bytes that were moved.
	Bytes CounterKind = "bytes"
	// Operations that were done: requests of disks, packets of cards, and so on.
	Operations CounterKind = "operations"
	// Failures of any kind.
	Failures CounterKind = "failures"
	// Throttled: how often a rate made the guest wait.
	Throttled CounterKind = "throttled"
	// Microseconds that operations took.
	Microseconds CounterKind = "microseconds"
	// Exits of processors to the VMM.
	Exits CounterKind = "exits"
)

// Parts of a VM that counters are about. Disks and cards are counted together.
const (
	PartDisk, PartCard, PartStream = "disk", "card", "stream"
	// PartMemory is memory that is added and taken, PartReclaim what is given back unasked.
	PartMemory, PartReclaim = "memory", "reclaim"
	PartProcessor           = "processor"
	// PartPorts and PartMMIO are why processors exit.
	PartPorts, PartMMIO = "ports", "mmio"
	// PartFilter is that of system calls, PartAPI the VMM's control, PartMetrics what it tells of itself, PartVMM the rest of it.
	PartFilter, PartAPI, PartMetrics, PartVMM = "filter", "api", "metrics", "vmm"
)

// Directions of a counter.
const (
	In  = "in"
	Out = "out"
)
