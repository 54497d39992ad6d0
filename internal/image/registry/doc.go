// Package registry says how the registry of an image is reached: which hosts are asked, in which order, over which
// connections and with whose credentials.
//
// State: a [Registries] is a configuration, which does not change; hosts.toml files are read anew for each pull. A [Session]
// has the connections of one pull until Close, and logs in once. It is used by one pull, from any of its goroutines, once
// Hosts was called.
//
// Credentials go to the registry that they are for and to no mirror.
//
// It imports nothing of ours.
package registry
