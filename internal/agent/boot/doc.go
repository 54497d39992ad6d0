// Package boot turns the kernel's first process into a usable guest: file systems, modules, control groups,
// loopback. It also ends the guest.
//
// [Prepare] is called once, before anything else of the agent, in a process that does nothing else yet. It owns
// the guest's mount table as it is then; containers have their own. It imports internal/agent/cgroup,
// internal/agent/guestnet and internal/transport only.
package boot
