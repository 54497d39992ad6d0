// Package vm runs one microVM: configuration, boot, the agent's connection, disks, and the way down.
//
// A [VM] owns its VMM process, the control connection to the agent, the disks that are attached and the console's
// output. It lives until [VM.Done]; whoever started it calls [VM.Stop]. Methods may be called concurrently.
//
// [Config] is a pure function of the options, so that a VM can be told without one being started. The package
// does not know what containers are, beyond that they use disks, and must not import internal/shim.
package vm
