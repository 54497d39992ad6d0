// Package netns makes, enters and removes network namespaces that a bind mount keeps alive.
//
// The directory of the pins belongs to the caller: one directory per daemon, one pin per pod, named by the pod's ID.
// The package holds no state. Every function may be called concurrently; two calls for one pin must be ordered by
// the caller. A thread that cannot be brought back to its own namespace is never used again.
//
// It must stay light (standard library, x/sys and netlink only): the VM shim links it too.
package netns
