package task

import "time"

// Stats of a sandbox at one moment.
type Stats struct {
	At     time.Time
	CPU    CPU
	Memory Memory
	// IOPSI is the pressure of I/O on the sandbox as a whole; nil where it is not measured.
	IOPSI      *PSI
	Interfaces []Interface
	// Writable is the file system that the containers' writable layers are on; nil where it is not known.
	Writable   *FileSystem
	Containers []ContainerStats
}

// ContainerStats of one container.
type ContainerStats struct {
	ID     string
	CPU    CPU
	Memory Memory
	// IO is nil where it is not measured.
	IO *IO
	// Pids counts tasks, which are threads, and processes are what Processes counts; 0 where they are not counted.
	Pids, PidsLimit, Processes uint64
	// OpenFiles is the soft limit of the first process; nil where it is not known.
	OpenFiles *uint64
	// WritableBytes and WritableInodes are what its writable layer holds. It has one inode at least: none is that it could not
	// be measured.
	WritableBytes  uint64
	WritableInodes uint64
}

// CPU usage; UsageNS is cumulative nanoseconds.
type CPU struct {
	UsageNS uint64
	PSI     *PSI
	// Detail is nil where it is not measured, as in every type here.
	Detail *CPUDetail
}

// CPUDetail is what UsageNS consists of, and how often a quota held the group back.
type CPUDetail struct {
	UserNS, SystemNS uint64
	Throttling       *Throttling
}

// Throttling by a quota: periods with tasks that wanted to run, those of them in which the quota was used up, and for how
// long tasks then waited.
type Throttling struct{ Periods, Throttled, ThrottledNS uint64 }

// Memory in bytes.
type Memory struct {
	Usage, WorkingSet, RSS, Available, Swap uint64
	PageFaults, MajorPageFaults             uint64
	PSI                                     *PSI
	Detail                                  *MemoryDetail
}

// MemoryDetail is what memory is used for, and how it met its limits.
type MemoryDetail struct {
	Cache, MappedFile, Kernel, ActiveFile, InactiveFile uint64
	// Peak of the usage; LimitHits counts how often the usage met the limit, OOMKills the processes that were killed for it.
	Peak, LimitHits, OOMKills *uint64
}

// IO of block devices.
type IO struct {
	Devices []DeviceIO
	PSI     *PSI
}

// DeviceIO are the counters of one block device.
type DeviceIO struct {
	Device                               string // as /dev/sda, or major:minor where it has no name
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// FileSystem is what a file system has.
type FileSystem struct{ Bytes, Inodes, FreeInodes uint64 }

// PSI is pressure stall information.
type PSI struct{ Full, Some PSIData }

// PSIData is one line of it; Total in microseconds, averages in percent.
type PSIData struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// Interface counters, as seen by the pod.
type Interface struct {
	Name   string
	Rx, Tx Traffic
}

// Traffic is what went one way.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// Counter is a sum since the start of a sandbox's VM, the only one with its name.
type Counter struct {
	CounterName
	Value uint64
}

// CounterName is what is counted, as bytes, of which part of the VM, as disk, and the direction, in, out or none.
type CounterName struct{ Kind, Part, Direction string }
