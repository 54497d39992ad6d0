// Package bootstrap is the command around a shim: its arguments and actions as containerd calls them, the start of the
// process that stays, and that process until it ends.
//
// It owns the process's sockets and lock. What is served is [shim.Service]'s.
package bootstrap
