// Package vmm is what drivers of all VMMs need: a VMM's process and its end ([Start], [Process]), what it sees of the
// host ([Jail]), the life of its virtual machine ([Machine]), its memory and disks ([Slots]), the last that
// somebody said ([Tail]), HTTP over a Unix socket ([API]), what a VMM counts ([Meter]), and finding the program ([Program]).
//
// A Process owns one thread that started the VMM, whose end would kill it, and that lives in the jail; both end with the
// VMM. All methods may be called from any goroutine.
//
// The package imports nothing of ours but internal/hypervisor.
package vmm
