// Package virtiofs runs a program in a guest whose root is this host's, over virtio-fs: what volumes and root file systems of
// microVM pods are measured against. It owns the guest and its server until the program has ended.
package virtiofs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// patience bounds a guest's life.
const patience = 20 * time.Minute

// Guest says what is run: a guest of Pistis with another first process.
type Guest struct {
	Kernel, Initrd, Module, Server string
	Machine, CPU, Params           string
	// Before is what its programs are started with, as nice.
	Before []string
}

// Flags makes flags of it.
func (g *Guest) Flags() {
	flag.StringVar(&g.Kernel, "kernel", "", "the guest's kernel")
	flag.StringVar(&g.Initrd, "initrd", "", "the guest's initrd")
	flag.StringVar(&g.Module, "virtiofs", "", "the kernel's module virtiofs")
	flag.StringVar(&g.Server, "virtiofsd", "/usr/lib/qemu/virtiofsd", "virtio-fs's server")
	flag.StringVar(&g.Machine, "machine", "q35,accel=tcg", "QEMU's machine for virtio-fs")
	flag.StringVar(&g.CPU, "cpu", "EPYC,-cx16,-svm", "QEMU's processor for virtio-fs")
	flag.StringVar(&g.Params, "params", "no_timer_check tsc=reliable mitigations=off noreplace-smp", "kernel parameters")
}

// Run runs a program of the host, which must be fsload, in a guest and returns what it wrote. work is for temporary files.
func (g Guest) Run(ctx context.Context, work, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	initrd, socket := filepath.Join(work, "initrd"), filepath.Join(work, "virtiofs.sock")
	if err := g.initrd(initrd, program); err != nil {
		return "", err
	}
	server := g.command(ctx, g.Server, "--socket-path="+socket, "-o", "source=/", "-o", "sandbox=chroot")
	var said bytes.Buffer
	server.Stderr = &said
	if err := server.Start(); err != nil {
		return "", err
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait(); _ = os.Remove(socket) }()
	for _, err := os.Stat(socket); err != nil; _, err = os.Stat(socket) {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		time.Sleep(20 * time.Millisecond) // it makes the socket when it is ready
	}
	command := strings.Join(append([]string{program}, args...), " ")
	qemu := g.command(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", g.Machine, "-cpu", g.CPU,
		"-smp", "1", "-m", "512M", "-object", "memory-backend-memfd,id=memory,share=on,size=512M", "-numa", "node,memdev=memory",
		"-kernel", g.Kernel, "-initrd", initrd, "-append", "rdinit=/fsload console=ttyS0 quiet panic=-1 reboot=t "+g.Params+" -- "+command, "-serial", "stdio",
		"-chardev", "socket,id=root,path="+socket, "-device", "vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024", "-device", "virtio-rng-pci")
	out, err := qemu.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("QEMU: %w: %s; virtiofsd: %s", err, out, said.Bytes())
	}
	return strings.ReplaceAll(string(out), "\r", ""), nil
}

func (g Guest) command(ctx context.Context, argv ...string) *exec.Cmd {
	argv = append(g.Before[:len(g.Before):len(g.Before)], argv...)
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

// initrd writes the guest's initrd with another first process and one module more, in an archive before it: the kernel
// unpacks one after the other.
func (g Guest) initrd(path, program string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	for _, file := range []struct{ name, from string }{{"fsload", program}, {"virtiofs.ko", g.Module}, {"TRAILER!!!", ""}} {
		var data []byte
		if file.from != "" {
			if data, err = os.ReadFile(file.from); err != nil {
				return err
			}
		}
		const mode = 0o100755
		// cpio's "newc" format, as the kernel's initramfs takes it.
		fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(file.name)+1, 0)
		io.WriteString(w, file.name+"\x00")
		w.Write(make([]byte, -(110+len(file.name)+1)&3))
		w.Write(data)
		w.Write(make([]byte, -len(data)&3))
	}
	base, err := os.ReadFile(g.Initrd)
	if err != nil {
		return err
	}
	w.Write(base)
	return w.Flush()
}
