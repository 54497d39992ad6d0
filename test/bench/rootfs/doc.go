// Command rootfs measures root file systems: an image of 2 GiB with many small files is pulled, started from and worked in, by
// microVM pods, by pods on the host's kernel, by containerd and by a guest with virtio-fs; then many pods share it.
//
// It owns the daemons that it starts (test/endpoint), one after the other, and a registry.
package main
