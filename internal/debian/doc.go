// Package debian downloads Debian packages with apt and unpacks them, without installing anything.
//
// An [Archive] is a private apt: its own configuration, package lists and cache below one directory of the
// caller's, with copies of the machine's package sources and the machine's trusted keys. The machine's own
// apt state is neither read nor written and its sources are never edited. Root is not needed.
//
// An Archive's methods must not be called concurrently; several processes may use one directory, apt's own
// lock files order them. The package imports nothing of ours.
package debian
