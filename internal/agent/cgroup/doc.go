// Package cgroup reads and controls the guest's unified cgroup hierarchy.
//
// A [Group] is no more than a directory; the package owns no state. What it
// reads of a group is what internal/cgroup reads.
package cgroup
