// Package images builds the container images that tests run, from Debian packages, and serves them from a
// plain-HTTP registry on this host.
//
// Images come in groups that are built once into a cache directory: an OCI layout per group, named after a
// digest of this package's source, so that a changed recipe makes a new layout. Building is serialised by a
// file lock; a finished layout is never written to. A [Registry] serves layouts read-only; what a test pushes
// goes to a directory of the Registry's own that ends with it.
//
// Some images are broken on purpose: see broken.go.
package images
