// Package vmpod runs sandboxes as virtual machines: it is a sandbox.Launcher over the VM shim.
//
// It turns the pod's configuration and the daemon's settings into the complete description that a shim gets, and owns what
// the daemon makes for a VM on the host: the writable disk, the user id of the VMM and the pod's bundle directory, which
// the shim fills. What it has made is in the state that it saves in the sandbox's record, or follows from the sandbox's
// id. The VM itself, its cgroup and the files in the bundle are the shim's.
//
// Concurrency: a [Launcher] may be used from any goroutine; calls for one sandbox come one after another. [UIDs] is shared
// by all launchers of a daemon and locks itself.
//
// The package must not import container or cri.
package vmpod
