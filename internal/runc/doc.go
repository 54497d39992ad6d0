// Package runc runs containers with the runc program, or with crun, which has the same command line.
//
// A [Runc] keeps no state but the program's own. Every run of the program, and every process that it leaves behind, goes
// through the reaper. Calls for different containers may run at once; calls for one container are the caller's
// to order. It imports internal/reaper only.
package runc
