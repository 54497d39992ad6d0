// Package guestimage builds what a microVM boots: a kernel, and an initrd with the agent, a static runc and
// just the kernel modules that a guest needs.
//
// [Build] makes a directory with vmlinuz, initrd and guest.json, and replaces it as a whole: a reader sees the
// old guest or the new one. It owns that directory and its own cache of kernel packages, nothing else; builds
// of one directory wait for each other by a file lock. [Load] only reads.
//
// Kernel packages, kernel images and modules come from the machine's distribution or its administrator; the
// decoders are bounded all the same. The package must not import anything of ours but internal/debian.
package guestimage
