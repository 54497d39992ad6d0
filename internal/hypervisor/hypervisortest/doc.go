// Package hypervisortest is what a driver of a VMM has to pass, and a driver that fails in every way.
//
// [Run] is the contract of hypervisor.Driver and hypervisor.VM as tests, which boot real guests; [BuildGuest]
// makes the guest for them, whose first process is the command testinit beside this package. [Fake] is a
// driver without a VMM, for tests of the code above the seam.
//
// The package is for tests alone and owns nothing that outlives one.
package hypervisortest
