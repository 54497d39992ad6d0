// Package cloudhypervisor drives virtual machines of Cloud Hypervisor, 40 or later, under KVM.
//
// Each runs in a jail (vmm.Jail) with Cloud Hypervisor's own filter of system calls, and its own Landlock rules where the
// kernel has them. Control and events are inherited descriptors: there is no socket to which anybody else could speak.
// Taps go over the control socket as descriptors. Disks are opened by name in the jail; a disk's address is its serial,
// which is made of its id.
//
// Cloud Hypervisor boots a guest that resets itself again; the driver ends it instead. The package owns what belongs to
// its VMs and nothing else; it imports hypervisor, its vmm and internal/transport.
package cloudhypervisor
