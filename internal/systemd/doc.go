// Package systemd asks the host's service manager for the cgroups of pods. Where systemd is the init system it is the only
// writer of the cgroup tree: whoever wants a group there gets a transient unit, a slice or a scope, from it.
//
// A [Manager] keeps nothing, not even a connection, since systemd drops those when it is upgraded; all state is
// systemd's. Its methods may be called from any goroutine. The package imports nothing of ours, and must not be part of
// the monitor, the shim or the agent, of which a node runs many.
package systemd
