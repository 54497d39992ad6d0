// Package store keeps small versioned records on disk, one JSON file each, and reserves names.
//
// A [Store] is owned by one manager, which is the only writer of its directory. A write is atomic: after a crash of the
// process a record is the old one or the new one, never half of either. That it has come to the disk costs milliseconds,
// so the caller says for which writes that is worth while; a write that is not waited for has a file of its own, so that a
// crash of the machine loses that alone. What cannot be read at start is moved aside and reported, so
// that one damaged file does not keep the daemon from serving the others.
// A Store's methods may be called from any goroutine; writes of one id must be ordered by the caller. [Names] locks
// itself. The package imports nothing of ours.
package store
