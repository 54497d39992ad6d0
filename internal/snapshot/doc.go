// Package snapshot makes disks for virtual machines: a read-only ext4 image of each layer of an image, shared by all
// machines that use the layer, and empty writable disks.
//
// State: [Layers] owns one directory with a file per layer, named after the layer's DiffID, the digest of its
// uncompressed tar. A file gets its name only after it was written, verified against that digest and synced, so that a
// name means a whole layer. The files belong to root with mode 0600: a machine monitor gets an open descriptor.
//
// Concurrency: all methods may be called from any goroutine. A layer is converted once, for all who wait for it. A layer
// that an Ensure asked for after a Collect had begun is never removed by that Collect.
//
// Layers are hostile input. What a tar may hold, and how much, is decided in sanitizer before the converter sees it: no
// name leaves the layer's root, no entry lies below a symbolic link, and counts and sizes are bounded.
//
// It must not import sandbox, container or cri, nor touch the image store but through the interface it declares.
package snapshot
