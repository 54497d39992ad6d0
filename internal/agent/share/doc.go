// Package share mounts what the host shares, and relays FUSE messages between the kernel and the host's server.
//
// A [Mount] owns one open /dev/fuse and one mount point. [Mount.Relay] runs until the file system is unmounted or
// the stream ends, and closes /dev/fuse then: the kernel answers everything that still waits, so that no process of
// the guest hangs for a host that has gone. What the host says it has changed it repeats on the mount.
//
// Few messages go to the server: attributes of directories that came with the answer to a change are the answer to the kernel's next
// question for them, and what nobody waits for goes with the next request. The package understands no more of FUSE than that
// takes, and imports nothing of ours but the contract and package transport.
package share
