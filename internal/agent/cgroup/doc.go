// Package cgroup reads and controls the guest's unified cgroup hierarchy.
//
// A [Group] is no more than a directory; the package owns no state. It imports api/agent/v1 only, for the
// messages that statistics are reported in.
package cgroup
