package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/pistis-run/pistis/internal/transport"
)

const (
	qemuProgram      = "qemu-system-x86_64"
	virtiofsdProgram = "/usr/lib/qemu/virtiofsd"
)

// machine is a running lab.
type machine struct {
	qemu, share *child
	streams     *transport.Client
	console     *console
}

// boot starts QEMU and the server of its root.
func boot(o options, k kernel) (_ *machine, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	disk, err := newDisk(o.diskMiB)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	share, fs, err := startShare(self)
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	m := &machine{share: share, console: &console{}}
	if o.verbose {
		m.console.copy = o.stderr
	}
	pipe, theirs, err := socketPair()
	if err == nil {
		defer theirs.Close()
		m.qemu, err = startChild(qemuProgram, qemuArgs(o, k, self), []*os.File{fs, disk, theirs}, m.console, nil)
	}
	if err != nil {
		return nil, errors.Join(err, share.stop())
	}
	m.streams = transport.NewClient(pipe)
	return m, nil
}

// The descriptors that QEMU inherits.
const (
	fsFD = iota + 3
	diskFD
	pipeFD
)

// qemuArgs describe the lab. QEMU 7.2 emulates cmpxchg16b wrongly, and a kernel that uses it dies.
func qemuArgs(o options, k kernel, self string) []string {
	memory := fmt.Sprintf("%dM", o.memoryMiB)
	params := []string{
		"console=ttyS0", "quiet", "panic=-1", "no_timer_check", "tsc=reliable", "mitigations=off",
		"root=lab", "rootfstype=virtiofs", "ro", "init=" + self, "--", k.base,
	}
	if o.systemd {
		params = append(params, systemdWord)
	}
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,usb=off,vmport=off,hpet=off", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt,-cx16",
		"-smp", fmt.Sprint(o.vcpus), "-m", memory,
		"-object", "memory-backend-memfd,id=memory,share=on,size=" + memory, "-numa", "node,memdev=memory",
		"-kernel", k.Image, "-append", strings.Join(params, " "),
		"-serial", "stdio",
		"-chardev", fmt.Sprintf("socket,id=root,fd=%d", fsFD),
		"-device", "vhost-user-fs-pci,chardev=root,tag=lab,queue-size=1024",
		"-add-fd", fmt.Sprintf("fd=%d,set=1", diskFD),
		"-blockdev", "driver=raw,node-name=disk,discard=unmap,cache.no-flush=on,file.driver=file,file.filename=/dev/fdset/1,file.locking=off",
		"-device", "virtio-blk-pci,drive=disk",
		"-device", "virtio-serial-pci", "-chardev", fmt.Sprintf("socket,id=pipe,fd=%d", pipeFD),
		"-device", "virtserialport,chardev=pipe,name=" + transport.SerialPort,
		"-device", "virtio-rng-pci",
	}
}

// newDisk is an empty file system in a file without a name.
func newDisk(sizeMiB int) (*os.File, error) {
	f, err := os.CreateTemp("", "lab-disk-")
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.Remove(f.Name()), f.Truncate(int64(sizeMiB)<<20))
	if err == nil {
		mkfs := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal", "/proc/self/fd/3")
		mkfs.ExtraFiles = []*os.File{f}
		var out []byte
		if out, err = mkfs.CombinedOutput(); err != nil {
			err = fmt.Errorf("mkfs.ext4: %w: %s", err, out)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// startShare starts the server of the root and returns QEMU's end of the socket to it.
func startShare(self string) (*child, *os.File, error) {
	if _, err := os.Stat(virtiofsdProgram); err != nil {
		return nil, nil, fmt.Errorf("virtiofsd: %w (it is in Debian's package qemu-system-common)", err)
	}
	// The server wants a socket that listens.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@pistis-lab-" + rand.Text(), Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	listening, err := l.File()
	if err != nil {
		return nil, nil, err
	}
	defer listening.Close()
	conn, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	theirs, err := conn.File()
	if err != nil {
		return nil, nil, err
	}
	share, err := startChild(self, []string{shareRootVerb, "3"}, []*os.File{listening}, nil, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS})
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return share, theirs, nil
}

// stop ends the lab.
func (m *machine) stop() error {
	err := errors.Join(m.qemu.stop(), m.share.stop())
	m.streams.Close() // the pipe has gone with QEMU
	return err
}

// lastWords are what the console and the programs said last, for errors.
func (m *machine) lastWords() string {
	var said strings.Builder
	for _, part := range []struct{ who, what string }{
		{"QEMU", m.qemu.stderr.tail()}, {"virtiofsd", m.share.stderr.tail()}, {"the console", m.console.tail()},
	} {
		if part.what != "" {
			fmt.Fprintf(&said, "\n%s said:\n%s", part.who, part.what)
		}
	}
	return said.String()
}

// child is a program that dies with this one.
type child struct {
	cmd    *exec.Cmd
	stderr *console
	done   chan struct{}
}

// startChild starts a program. The kernel kills it when the thread that has forked it ends, so that thread stays.
func startChild(path string, args []string, files []*os.File, stdout io.Writer, attr *syscall.SysProcAttr) (*child, error) {
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Pdeathsig, attr.Setsid = syscall.SIGKILL, true
	c := &child{cmd: exec.Command(path, args...), stderr: &console{}, done: make(chan struct{})}
	c.cmd.ExtraFiles, c.cmd.Stdout, c.cmd.Stderr, c.cmd.SysProcAttr = files, stdout, c.stderr, attr
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.cmd.Wait() // how it ended is in ProcessState
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return c, nil
}

func (c *child) stop() error {
	err := c.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-c.done
	return err
}

// console keeps the last of what is written to it.
type console struct {
	mu   sync.Mutex
	buf  []byte
	copy io.Writer
}

const consoleSize = 8 << 10

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, p...)
	c.buf = c.buf[max(0, len(c.buf)-consoleSize):]
	if c.copy != nil {
		return c.copy.Write(p)
	}
	return len(p), nil
}

func (c *console) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var kept []string
	for line := range strings.Lines(string(c.buf)) {
		// A line for every feature that emulation leaves out, whatever becomes of the lab.
		if !strings.Contains(line, "TCG doesn't support") {
			kept = append(kept, line)
		}
	}
	return strings.TrimSpace(strings.Join(kept, ""))
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn, theirs, nil
}
