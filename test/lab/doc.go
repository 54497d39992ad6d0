// Command lab runs a command on a KVM host that it makes for it: a virtual machine, emulated by QEMU, with an emulated
// AMD-V, so that /dev/kvm, vhost-vsock, vhost-net and cgroup v2 are there on machines that have none of them.
//
//	lab [flags] command [argument...]
//
// The lab's root file system is this machine's, read-only, under an overlay on a disk that is thrown away: every program
// and file is there under its own name, and nothing that the command writes comes back but its output. It has no network
// but a loopback device. /mnt is the disk itself, for what does not work on an overlay: the upper directories of other
// overlays. The command's exit code is lab's own; 125 says that the lab itself failed.
//
// With -systemd the first process is this machine's systemd, with D-Bus and nothing else beside the command, which is
// a service there.
//
// The same program is the first process inside (init*.go): the kernel starts it by its path on the shared root. Outside
// (machine.go, root.go, run.go) it owns QEMU and virtiofsd, which die with it, also when it is killed, and leaves no
// file: disk and memory are unlinked. Streams are internal/transport's, over a virtio-serial port.
package main
