// Package rootfs mounts the root file systems of containers on the host's kernel: an overlay of an image's layers, which
// are shared and never written, and of a directory for what the container writes. It also mounts images as read-only
// volumes.
//
// State: [Roots] owns one directory with a directory per root, named by the caller's id. The mounts are the kernel's:
// they outlive the daemon, and every process of its mount namespace sees them. What is written is lost with Remove
// only, not with a reboot; the mounts are.
//
// Concurrency: methods for different ids may be called from any goroutine. Two calls for one id must not overlap, save
// Usage, Diff and Work, which may come at any time.
//
// [Watched] adds one goroutine, while there is something to be measured; its Close ends it.
//
// What a container has written is hostile, and may change while it is looked at: no link in it is followed, and how deep
// it nests is bounded where depth costs descriptors.
//
// It imports internal/cleanup only; the layers come as paths.
package rootfs
