// Package cgroup keeps a pod's cgroup on the host: it makes it on every hierarchy that matters, puts the shim and
// the VMM into it, and kills and removes it.
//
// It works with cgroup v2, with v1 and with the hybrid of both, through cgroupfs. A [Group] is only a name; its state
// is the kernel's, so that any process may open the group of a dead one. Methods may be called concurrently.
//
// It must not import the daemon's packages.
package cgroup
