// Command bench measures a running daemon from outside, through CRI and /proc, and prints a table.
//
// It asserts nothing: numbers depend on the machine, and where a peer exists the ratio is what counts. Run it with
// `make bench`, which starts a daemon of its own.
package main
