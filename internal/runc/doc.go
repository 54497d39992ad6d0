// Package runc runs containers in the guest with the runc program.
//
// A [Runc] owns runc's state directory. Every run of the program, and every process that it leaves behind, goes
// through the reaper. Calls for different containers may run at once; calls for one container are the caller's
// to order. It imports internal/reaper only.
package runc
