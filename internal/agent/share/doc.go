// Package share mounts what the host shares, and relays FUSE messages between the kernel and the host's server.
//
// A [Mount] owns one open /dev/fuse and one mount point. [Mount.Relay] runs until the file system is unmounted or
// the stream ends, and closes /dev/fuse then: the kernel answers everything that still waits, so that no process of
// the guest hangs for a host that has gone. What the host says it has changed it repeats on the mount. The package
// understands nothing of FUSE but the header of a message and where the data of reads and writes is, and imports nothing of ours but
// the contract and package transport, with which it waits for messages.
package share
