// Package shim is the inside of a VM shim: one process that owns one sandbox, its microVM and its tasks.
//
// [Service] serves containerd's sandbox and task APIs and our own beside them, and the stream socket. It owns the
// sandbox's state, every process's state (the tables in lifecycle.go, changed only through their methods), the
// containers' logs and the VM. Each object has its own lock, which is never held across a call to the guest: a
// transient state (creating, starting, deleting) is claimed first.
//
// An exit is published after the process's output was drained, and after its start was published; when the VM
// ends, every process ends with it, with code 255 and the reason.
//
// The command around it (start, delete, the server process) is in bootstrap, the bookkeeping of limits in limits. It must stay
// small, as a node runs one such process per pod: no gRPC server, no containerd core, nothing of the daemon's.
package shim
