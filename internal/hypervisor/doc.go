// Package hypervisor is the vocabulary between a VM shim and the drivers of virtual machine monitors.
//
// A [Driver] turns a complete [Config] into a running [VM]; what only some drivers can do (plug disks, resize,
// pause, snapshot) is a separate small interface found by type assertion. The package owns no state. A VM's
// methods may be called from any goroutine.
//
// It imports nothing of ours; drivers import nothing of ours but this package and internal/transport.
package hypervisor
