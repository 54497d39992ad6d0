package main

import "time"

// The ports that the lab's first process listens on, in the order in which they are dialled. The command's description
// goes in through the first, as JSON and an end of writing; its outcome comes back there, after the output.
const (
	controlPort = iota + 1
	stdoutPort
	stderrPort
	pulsePort
)

// pulse is how often the host sends a byte through pulsePort, so that the lab has an interrupt. QEMU 7.2's emulation of nested guests
// forgets one now and then: it changes the processor's pending interrupts without the lock that devices take, and when that was the
// timer's the processor sleeps until the next interrupt of any device, for ever if there is none.
const pulse = time.Second

// ports are all of them.
func ports() []uint32 { return []uint32{controlPort, stdoutPort, stderrPort, pulsePort} }

// maxMessage bounds the JSON of either side, in bytes.
const maxMessage = 4 << 20

// job is what is to be run.
type job struct {
	Args []string
	Env  []string
	Dir  string
}

// outcome is how it went. Error says why it could not be run.
type outcome struct {
	Code  int
	Error string
}
