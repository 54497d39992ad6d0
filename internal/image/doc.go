// Package image pulls, keeps, lists and removes OCI images.
//
// State: a [Service] owns one directory, in which containerd's content store holds the blobs and a bbolt database the
// names, the references between blobs and the leases that keep blobs from garbage collection. Nothing else writes
// there; a second process is refused. A name is registered last, in one transaction, after all its blobs are on the
// disk and verified, so that a crash leaves an image whole or not at all.
//
// What keeps a blob: a name that leads to it, a pull that is under way (or was interrupted a short while ago, so that
// the next one goes on where it ended), a container that said so with [Service.Use]. All else goes with the next
// removal or at the next start. The forms that other packages make of layers (see [Service.SetForms]) follow the same
// rule.
//
// Concurrency: all methods may be called from any goroutine. Pulls of one reference with the same credentials are one
// piece of work, which lives until its last waiter has gone; blobs are downloaded once even between different images.
//
// Content and registries are hostile: sizes, counts and media types are checked before anything is read into memory,
// and every blob is verified against its digest.
//
// It must not import sandbox, container, snapshot or cri.
package image
