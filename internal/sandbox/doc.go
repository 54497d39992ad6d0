// Package sandbox owns the sandboxes (pods) of this node: their records, names, states and resources.
//
// The [Manager] is the single writer of the sandbox records. Whatever runs a sandbox is behind [Launcher] and
// [Instance], one launcher for each runtime handler; networks and network namespaces are small interfaces as well.
// cmd/pistisd injects all of them.
//
// A sandbox's record says, before anything is acquired, all that it is going to have, so that whoever reads it later
// (the rollback of a failed Run, Stop, Remove, or Recover after a crash) can run the same release steps. All of
// them are idempotent and may be repeated.
//
// Concurrency: every method may be called from any goroutine. One operation at a time (Run, Stop, Remove, the clean-up
// after an end by itself) holds a sandbox's claim, and waiting for it ends with the caller's context. Readers never
// wait for an operation: they see the last saved state. Each Ready sandbox has one goroutine that waits for its instance to
// end; Close stops and joins them, and leaves the sandboxes running.
//
// Errors say what went wrong and leave it to the caller to name the operation and the sandbox that it asked for.
//
// The package must not import shimclient, hypervisor, vm, vmpod, container or cri.
package sandbox
