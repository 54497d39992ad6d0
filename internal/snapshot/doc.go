// Package snapshot makes of the layers of images what containers can be run from: for virtual machines a read-only ext4
// image of each layer ([Disks]), and empty writable disks; for containers on the host's kernel a directory of each
// layer, for overlayfs ([OpenDirectories]).
//
// State: [Layers] owns one directory with a file or a directory per layer, named after the layer's DiffID, the digest of
// its uncompressed tar, and so shared by all images that hold it. It gets its name only after it was written, verified
// against that digest and synced, so that a name means a whole layer. All is root's alone, mode 0700: a machine
// monitor gets an open descriptor, a container an overlay that the daemon has mounted.
//
// Concurrency: all methods may be called from any goroutine. A layer is converted once, for all who wait for it. A layer
// that an Ensure asked for after a Collect had begun is never removed by that Collect.
//
// Layers are hostile input. What a tar may hold, and how much, is decided before a converter sees it (parseEntry, tree):
// no name leaves the layer's root, no entry lies below a symbolic link, and counts and sizes are bounded.
//
// It must not import sandbox, container or cri, nor touch the image store but through the interface it declares.
package snapshot
