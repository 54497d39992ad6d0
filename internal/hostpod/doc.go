// Package hostpod runs sandboxes on the host's kernel: it is a sandbox.Launcher over an OCI runtime such as runc or crun.
//
// A pod has no process of its own but its monitor, which is the parent of its containers (package monitor). What the
// containers share is pinned in the pod's directory: IPC and UTS namespaces, /dev/shm, and the files that the runtime
// makes. Only a pod that shares its PID namespace has a first process in it, since such a namespace ends with its first
// process.
//
// The package owns the pod's directory below the state directory, with all that is mounted there, and the pod's cgroup
// where the client named none. What it has made follows from the sandbox's id, so that Cleanup needs no memory of it.
// The root file systems belong to whoever is behind [Roots].
//
// Concurrency: a [Launcher] may be used from any goroutine; calls for one sandbox come one after another, those for its
// containers in any order.
//
// The package must not import container or cri.
package hostpod
