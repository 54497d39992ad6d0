// Package container owns the containers of this node: their records, names, states and exit statuses.
//
// The [Manager] is the single writer of the container records and of the bundle directories. Images, layers and
// sandboxes are small interfaces that cmd/pistisd injects; the processes themselves are behind task.Service, which the
// container's sandbox hands out. Nothing here knows what kind of runtime that is, but for what a sandbox in a VM cannot
// have, which is refused early.
//
// Concurrency: every method may be called from any goroutine. Create, Start and Remove hold a container's claim, which is
// waited for with the caller's context; Stop takes it for a moment only, so that a second Stop with a shorter grace
// period is not held up by the first, and Checkpoint does without, as it may take long. Readers see the last saved state and wait for nobody. Each running container has one
// goroutine that waits for its exit, publishes it after its output was drained, and ends with Close.
//
// Errors say what went wrong and leave it to the caller to name the operation and the container that it asked for.
//
// The package must not import shimclient, hypervisor, vm, vmpod or cri.
package container
