// Package qemu drives QEMU, 7.2 or later, as a VMM for microVMs.
//
// [Driver] is stateless. A VM that it starts is one QEMU process, and everything that the process needs is
// passed to it as open descriptors: kernel, initrd, disks, taps, the console, the monitor and the pipe of the
// transport. No files are made, and the process may be one of an unprivileged user. docs/hypervisors.md
// explains the command line.
//
// A VM owns the process, its sockets and four goroutines: one whose thread started QEMU and reaps it (QEMU
// dies with that thread, hence with the caller's process), one that follows the console, the monitor's and
// the transport's. All of them end, and are joined, before Done is closed.
//
// The package imports nothing of ours but hypervisor, transport and qmp.
package qemu
