// Package modules loads kernel modules on demand, from a disk that the host attached.
//
// The disk holds what may be loaded and nothing else: the host, which made it, decides. The kernel asks by starting
// [HelperPath], which is the agent's own binary and ends in [Helper]; nobody else can load anything by it. The disk is
// mounted by whoever needs it first. The package owns that mount and the files below its directory. It imports
// internal/agent/rootfs to find the disk.
package modules
