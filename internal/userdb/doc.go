// Package userdb resolves the names of users and groups inside a container's root file system, on the host as in a
// guest.
//
// The files are a stranger's: they are opened beneath the root (openat2, no way out by links), read only when
// regular, and bounded in size and line length. The package owns no state and imports internal/task only.
package userdb
