// Package reaper collects the exits of all child processes of a first process.
//
// A first process inherits every orphan of the machine, so that nobody but one loop may call wait: the loop
// here is the only caller of wait4, and [Reaper.Start] and [Recording.Adopt] are the only ways to learn of an
// exit. os/exec's Wait must not be used beside it.
//
// The Reaper owns the table of children; all methods may be called from any goroutine. It imports nothing of ours.
package reaper
