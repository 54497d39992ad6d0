// Package qmp speaks QEMU's machine protocol: commands with JSON arguments and answers, and events.
//
// A [Client] owns its connection and one goroutine that reads from it; Close ends and joins it. Its methods
// may be called from any goroutine. QEMU is trusted only as far as the guest that runs in it: messages are
// bounded.
//
// The package imports nothing of ours.
package qmp
