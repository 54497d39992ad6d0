// Package bundle knows the run directory of one sandbox: what lies in it, who is alive in it, and how to take it down.
//
// The directory belongs to the shim, or to the monitor of a pod on the host's kernel, while that lives: it holds a flock on [Dir.Lock], writes [Dir.ShimFile] and
// [Dir.VMMFile], and serves the sockets. Everybody else only reads, and removes what a dead shim left with
// [Dir.Cleanup]. A process is always named by pid and start time ([Process]) and signalled through a pidfd, so that
// a reused pid is never hit. The package keeps no state of its own; its functions may be called concurrently.
//
// It must not import the daemon's packages nor the VM's.
package bundle
