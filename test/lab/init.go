package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/transport"
)

// initMain is the lab's first process. args are what follows "--" on the kernel's command line.
func initMain(args []string) {
	if err := initLab(args); err != nil {
		fmt.Println("lab:", err)
		time.Sleep(time.Second) // the console is slow
	}
	// QEMU exits on a reset.
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func initLab(args []string) error {
	if len(args) == 0 {
		return errors.New("the kernel's command line does not end with the directory of its modules")
	}
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	if err := makeRoot(args[0]); err != nil {
		return err
	}
	if err := makeHost(); err != nil {
		return err
	}
	if slices.Contains(args[1:], systemdWord) {
		return becomeSystemd()
	}
	worker := exec.Command("/proc/self/exe", serveVerb)
	worker.Stdout, worker.Stderr = os.Stdout, os.Stderr
	if err := worker.Start(); err != nil {
		return err
	}
	// Whatever loses its parent is left to the first process.
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait: %w", err)
		}
		if pid == worker.Process.Pid {
			return errors.New("the command's server ended")
		}
	}
}

// serveVerb makes this program the one that runs the command, beside the first process.
const serveVerb = "serve-command"

// serve takes one command, runs it and waits for the host to take the lab down.
func serve() error {
	port, err := transport.OpenSerialPort(context.Background())
	if err != nil {
		return err
	}
	server, err := transport.NewServer(context.Background(), port)
	if err != nil {
		return err
	}
	var listeners []net.Listener
	for _, port := range ports() {
		l, err := server.Listen(port)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	var conns []net.Conn
	for _, l := range listeners {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		conns = append(conns, conn)
	}
	var beats sync.WaitGroup
	beats.Go(func() { _, _ = io.Copy(io.Discard, conns[3]) })
	defer beats.Wait()
	defer conns[3].Close()
	control := conns[0]
	var j job
	if err := json.NewDecoder(io.LimitReader(control, maxMessage)).Decode(&j); err != nil {
		return fmt.Errorf("read the command: %w", err)
	}
	result := runJob(j, conns[1], conns[2])
	err = errors.Join(conns[1].Close(), conns[2].Close(), json.NewEncoder(control).Encode(result))
	<-server.Done()
	return err
}

// runJob runs the command in a session of its own.
func runJob(j job, stdout, stderr io.Writer) outcome {
	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = j.Env, j.Dir, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What it leaves running holds on to its output.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			return outcome{Code: 128 + int(status.Signal())}
		}
		return outcome{Code: exit.ExitCode()}
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return outcome{Error: err.Error()}
	}
	return outcome{}
}

// makeRoot lays a disk over the shared root and makes that the root, with the modules of the running kernel in it and the
// disk at /mnt.
func makeRoot(base string) error {
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil {
		return err
	}
	for _, module := range []string{"virtio_blk", "overlay"} {
		if err := modprobe("-d", base, module); err != nil {
			return err
		}
	}
	const work, root = "/mnt", "/mnt/root"
	if err := mount("/dev/vda", work, "ext4", 0, ""); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work", "root", "plain"} {
		if err := os.Mkdir(filepath.Join(work, dir), 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+work+"/upper,workdir="+work+"/work"); err != nil {
		return err
	}
	if err := os.MkdirAll(root+"/lib/modules", 0o755); err != nil {
		return err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	modules := filepath.Join("/lib/modules", unix.ByteSliceToString(name.Release[:]))
	if err := os.MkdirAll(root+modules, 0o755); err != nil {
		return err
	}
	if err := mount(base+modules, root+modules, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := os.Chmod(work+"/plain", 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := mount(work+"/plain", root+work, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

func modprobe(args ...string) error {
	if out, err := exec.Command("modprobe", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe %q: %w: %s", args, err, out)
	}
	return nil
}
