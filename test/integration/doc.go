// Package integration tests the whole of Pistis from outside: a real pistisd, real images from a real registry on
// this host, real guests under QEMU, driven through CRI and the pistis command.
//
// The tests need root and the built binaries and guest; `make test` makes both and names them in PISTIS_BIN and
// PISTIS_GUEST. PISTIS_HANDLER names the handler of VM pods in place of vm, and PISTIS_ACCELERATION=kvm says that the
// host's KVM works: hack/lab-test.sh uses both. Every daemon has directories, a bridge and a cgroup of its own, and when its test ends a leak
// check must find nothing.
package integration
