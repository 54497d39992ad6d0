// Package server is the inside of a container monitor: one process that owns the containers of one pod on the host's
// kernel.
//
// It runs the OCI runtime for each of them, once to start it and once to delete it, and is the parent of what that leaves
// behind: [Server] reaps, signals without races, carries stdio, writes the logs and keeps exit codes until they are
// deleted. Everything is in its memory, but for a directory for each started container, from which the daemon cleans up
// when the monitor has died.
//
// A container has a state (the table in lifecycle.go) under a lock of its own, which is never held across a call of the
// runtime: a transient state (starting, deleting) is claimed first. An exit is published after the output was drained
// and, where processes of the container outlived its first one, after these were killed.
//
// A node runs one such process per pod: beside the rules for internal/monitor it must not import the daemon's packages.
package server
