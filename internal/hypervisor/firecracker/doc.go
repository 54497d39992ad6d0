// Package firecracker drives virtual machines of Firecracker, 1.8 or later, under KVM.
//
// Each runs in a jail of our own making (vmm.Jail) and not in that of Firecracker's jailer, which changes its identity
// after the parent-death signal was asked for and so loses it, and copies the program for every VM. The filter of
// system calls is Firecracker's own; a VM that runs without one is ended.
//
// Disks are plugged as PCI devices. Firecracker tells the guest nothing of that: the guest scans its bus for a disk that
// it was told of. A disk that is detached leaves its device behind with an empty image, for the next disk of the same access.
// Versions before 1.16 cannot plug: their VMs have a number of such devices from the start on. Those before 1.13 interrupt
// a guest for a new image also where its driver does not expect it yet, and the guest dies: a disk waits for the guest then.
// A disk's address is its serial, which Firecracker makes of the image's device and inode, and its size, by which the guest
// knows that it is there.
//
// What Firecracker logs and counts comes through pipes. They, and the control socket, which is connected to once, are removed
// then, so that nobody else can speak to it. The package owns what belongs to its VMs and nothing else; it imports hypervisor,
// its vmm and internal/transport.
package firecracker
