// Package taskshim runs the containers of a pod on the host's kernel by a containerd shim, which is any program that
// speaks containerd's shim protocol and is called by its name.
//
// Beside the shim is the pod's monitor (package monitor). It carries the containers' stdio and writes their logs, since
// it outlives the daemon and shims only copy into FIFOs; it keeps their exits until they are deleted; and it is the
// place of the shim: its binary is called there, so that whatever that leaves behind is in the pod's cgroup. The shim
// has the containers, and their exits while the daemon is down.
//
// A [Pod] is the daemon's view of both. It owns the connections and the directory of records beside the monitor's
// bundle: what has to be known of a container to go on after the daemon's end, and to clean up after the shim's. One
// shim may have all containers of the pod, or each container a shim of its own: the shim's binary decides.
//
// Concurrency: a Pod may be used from any goroutine. One operation at a time starts or deletes a container and holds its
// claim. For each started container and exec a goroutine waits; Close ends and joins them, and leaves the containers.
//
// The package must not import sandbox, hostpod or anything above it.
package taskshim
