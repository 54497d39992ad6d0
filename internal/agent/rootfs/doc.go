// Package rootfs makes the root file systems of containers in the guest: read-only ext4 layer disks, a scratch
// disk (or memory) for what is written, and an overlay of both.
//
// [Store] owns the mounts of layers (each mounted once and counted), the scratch file system and one
// directory per container on it. Its methods may be called from any goroutine; two calls for one container
// must not overlap, which the caller's table of containers ensures.
//
// It imports api/agent/v1 and internal/agent/uevent only.
package rootfs
