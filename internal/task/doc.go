// Package task is the vocabulary of running processes, as every runtime, the daemon and its stores speak it.
//
// It has no logic, owns no state and imports nothing of ours.
package task
