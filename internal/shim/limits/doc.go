// Package limits knows what each container of a VM pod may use, gives containers virtual processors for the host's, and
// confines the VM's process to the processors of its containers.
//
// A [Pod] owns that knowledge; its methods are safe for concurrent use. The package calls neither the guest nor the VM
// and imports nothing of ours.
package limits
