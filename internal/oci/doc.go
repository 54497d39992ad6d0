// Package oci makes OCI runtime specs: [Generate] from what a container was asked to be, and [ForGuest] the guest's
// spec from any host's.
//
// A spec that goes into a virtual machine crosses a trust boundary and changes its meaning: paths, devices and ids of
// the host are nothing there. ForGuest therefore rebuilds it, by the table guestFields, which says for every
// field of the runtime spec whether it is carried, translated or refused.
//
// The package is pure: it reads no files but the seccomp profile that [ReadSeccomp] is told to, owns no state and
// may be used from any goroutine. The VM shim links it, so it must not import containerd, grpc or k8s.io.
package oci
