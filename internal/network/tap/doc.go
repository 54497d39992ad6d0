// Package tap connects a virtual machine to the interfaces that a network plugin made in a pod's network namespace.
//
// For every Ethernet interface there it makes a tap device and lets the traffic control of the kernel send every
// frame that arrives on the one out of the other, in both directions. The guest takes the interface's MAC address,
// addresses, routes and permanent neighbours; they stay on the interface as well, because CNI CHECK looks for them,
// but the host's kernel sees no frame that it could answer. Traffic control comes before netfilter and the IP stack:
// whatever a plugin put there would be lost without a word, so Attach looks first and refuses the pod, naming it.
//
// The package holds no state. The caller owns the tap descriptors; the devices end with them. Calls for one namespace
// must be ordered by the caller.
//
// It is part of the VM shim and must stay light: standard library, x/sys, netlink and internal/network/netns only.
package tap
