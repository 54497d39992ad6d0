// Package posix does to a directory what POSIX says that programs may do to a file system, and writes down what came of
// it: one line for a case, the same each time on the same file system. Two directories behave alike when their lines are
// alike, which is how a volume in a guest is compared with the host's file system that it is of.
//
// The cases are calls with all kinds of files and paths as arguments, by root and by another user; pairs of files for
// calls that take two; and what must hold of sizes, times and open files. [Exercise] does random things to one file and
// compares it with what it must be. The package imports nothing of ours.
package posix
