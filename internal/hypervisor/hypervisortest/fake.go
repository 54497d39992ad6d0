package hypervisortest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Fault is how a Fake fails.
type Fault int

const (
	// NoFault: it works.
	NoFault Fault = iota
	// DiesAtOnce: Start fails, as with a VMM that exits at once.
	DiesAtOnce
	// StartHangs: Start returns when its context ends.
	StartHangs
	// NeverAnswers: the VM runs, and its guest takes no streams.
	NeverAnswers
)

// Fake is a driver whose VMs are a process that sleeps, so that pids, signals and cgroups are real. There is no
// guest: Serve plays it.
type Fake struct {
	Fault Fault
	// Serve is the guest's end of every stream that is dialled, in a goroutine of its own; it closes conn. A
	// nil Serve takes no streams.
	Serve func(port uint32, conn net.Conn)
	// NoDisks makes VMs that cannot plug disks.
	NoDisks bool
}

// Name is fake.
func (f *Fake) Name() string { return "fake" }

// Version is 1.0.
func (f *Fake) Version(context.Context, string) (string, error) { return "1.0", nil }

// Capabilities say that disks can be plugged, unless NoDisks.
func (f *Fake) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{HotplugDisk: !f.NoDisks, MaxDisks: 256}
}

// Start makes a *FakeVM, or with NoDisks a VM that is only that.
func (f *Fake) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	if err := cfg.Validate(f.Capabilities()); err != nil {
		return nil, err
	}
	switch f.Fault {
	case DiesAtOnce:
		return nil, fmt.Errorf("start vm %s: the fake VMM exited with status 1: %w", cfg.ID, errdefs.ErrFailedPrecondition)
	case StartHangs:
		<-ctx.Done()
		return nil, fmt.Errorf("start vm %s: %w", cfg.ID, context.Cause(ctx))
	}
	v := &FakeVM{serve: f.Serve, done: make(chan struct{}), disks: make(map[string]uint32)}
	if f.Fault == NeverAnswers {
		v.serve = nil
	}
	v.life, v.end = context.WithCancelCause(context.Background())
	if err := v.start(); err != nil {
		return nil, err
	}
	if cfg.Started != nil {
		if err := cfg.Started(v.PID()); err != nil {
			err = errors.Join(err, v.Kill())
			<-v.done
			return nil, err
		}
	}
	for _, d := range cfg.Disks {
		if _, err := v.AttachDisk(ctx, d); err != nil {
			err = errors.Join(err, v.Kill())
			<-v.done
			return nil, err
		}
	}
	if f.NoDisks {
		return struct{ hypervisor.VM }{v}, nil
	}
	return v, nil
}

// FakeVM is a VM of Fake.
type FakeVM struct {
	serve func(uint32, net.Conn)
	cmd   *exec.Cmd
	life  context.Context
	end   context.CancelCauseFunc
	done  chan struct{}
	err   error
	work  sync.WaitGroup

	mu         sync.Mutex
	poweredOff bool
	disks      map[string]uint32
	next       uint32
}

// start runs the process, which dies with this one.
func (v *FakeVM) start() error {
	v.cmd = exec.Command("sleep", "infinity")
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := v.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		v.err = fmt.Errorf("the fake VMM ended: %w", v.cmd.Wait())
		v.mu.Lock()
		if v.poweredOff {
			v.err = hypervisor.ErrPoweredOff
		}
		v.end(v.err) // from now on Dial refuses
		v.mu.Unlock()
		v.work.Wait()
		close(v.done)
	}()
	return <-started
}

// PowerOff is what a guest does that ends by itself.
func (v *FakeVM) PowerOff() error {
	v.mu.Lock()
	v.poweredOff = true
	v.mu.Unlock()
	return v.Kill()
}

// PID is the sleeping process.
func (v *FakeVM) PID() int { return v.cmd.Process.Pid }

// Dial opens a stream to Serve.
func (v *FakeVM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if v.serve == nil {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial guest port %d: %w", port, context.Cause(ctx))
		case <-v.life.Done():
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.life.Err() != nil {
		return nil, fmt.Errorf("dial guest port %d: %w: %w", port, context.Cause(v.life), errdefs.ErrUnavailable)
	}
	host, guest, err := streamPair()
	if err != nil {
		return nil, err
	}
	v.work.Go(func() {
		stop := context.AfterFunc(v.life, func() { guest.Close() })
		defer stop()
		v.serve(port, guest)
	})
	return host, nil
}

// streamPair is a stream with half close.
func streamPair() (host, guest net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "stream")
		var connErr error
		conns[i], connErr = net.FileConn(f)
		err = errors.Join(err, connErr, f.Close())
	}
	return conns[0], conns[1], err
}

// AttachDisk gives the disk the next LUN.
func (v *FakeVM) AttachDisk(_ context.Context, d hypervisor.Disk) (hypervisor.DiskAddress, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, there := v.disks[d.ID]; there {
		return hypervisor.DiskAddress{}, fmt.Errorf("attach disk %s: %w", d.ID, errdefs.ErrAlreadyExists)
	}
	lun := v.next
	v.next++
	v.disks[d.ID] = lun
	return hypervisor.DiskAddress{Kind: hypervisor.SCSILUN, LUN: lun}, nil
}

// DetachDisk forgets the disk.
func (v *FakeVM) DetachDisk(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, there := v.disks[id]; !there {
		return fmt.Errorf("detach disk %s: %w", id, errdefs.ErrNotFound)
	}
	delete(v.disks, id)
	return nil
}

// Disks are the ids of the disks that are attached.
func (v *FakeVM) Disks() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var ids []string
	for id := range v.disks {
		ids = append(ids, id)
	}
	return ids
}

// Shutdown waits for PowerOff or Kill, and kills when ctx ends.
func (v *FakeVM) Shutdown(ctx context.Context) error {
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
	}
	if err := v.Kill(); err != nil {
		return err
	}
	<-v.done
	return nil
}

// Kill ends the process.
func (v *FakeVM) Kill() error {
	if err := v.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Done is closed when the process was reaped and every Serve has returned.
func (v *FakeVM) Done() <-chan struct{} { return v.done }

// Err says how it ended.
func (v *FakeVM) Err() error {
	select {
	case <-v.done:
		return v.err
	default:
		return nil
	}
}
