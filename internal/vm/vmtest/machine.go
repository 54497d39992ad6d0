package vmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Driver makes Machines.
type Driver struct {
	// Agent answers in the guest.
	Agent *Agent
	// StartErr makes Start fail; Console is written before the guest answers.
	StartErr error
	Console  string
	// NoDialer makes Dial wait for its context, as a guest that never answers.
	NoDialer bool
	// Resizes: machines get processors and memory while they run. Stuck is how much of what was added the guest keeps.
	Resizes bool
	Stuck   uint64

	mu       sync.Mutex
	machines []*Machine
}

// Name is fake.
func (d *Driver) Name() string { return "fake" }

// Version is a constant.
func (d *Driver) Version(context.Context, string) (string, error) { return "fake 1.0", nil }

// Capabilities are those of a VMM that can plug disks.
func (d *Driver) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{HotplugDisk: true, ResizeMemory: d.Resizes, ResizeVCPUs: d.Resizes, MaxDisks: 8, MinMemory: 64 << 20}
}

// Start makes a machine.
func (d *Driver) Start(_ context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	if d.StartErr != nil {
		return nil, d.StartErr
	}
	m := &Machine{driver: d, Config: cfg, done: make(chan struct{}), Plugged: map[string]hypervisor.DiskAddress{}}
	if cfg.Started != nil {
		if err := cfg.Started(os.Getpid()); err != nil {
			return nil, err
		}
	}
	if cfg.Console != nil {
		fmt.Fprint(cfg.Console, d.Console)
	}
	if d.Agent != nil {
		d.Agent.setOff(func() { m.End(hypervisor.ErrPoweredOff) })
	}
	d.mu.Lock()
	d.machines = append(d.machines, m)
	d.mu.Unlock()
	m.memory = cfg.Memory
	if d.Resizes {
		return resizable{m}, nil
	}
	return m, nil
}

// Machines are all that were started.
func (d *Driver) Machines() []*Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.machines
}

// Machine is a VM without a VMM.
type Machine struct {
	Config hypervisor.Config
	driver *Driver

	mu    sync.Mutex
	conns []net.Conn
	err   error
	ended bool
	done  chan struct{}
	next  uint32
	// Plugged are the disks by id; Attached counts all that ever were.
	Plugged  map[string]hypervisor.DiskAddress
	Attached int
	memory   uint64
	// resized are the changes of its size, in order: as "2 processors" or "256 MiB".
	resized []string
}

// resizable is a machine that can be resized.
type resizable struct{ *Machine }

// ResizeMemory adds and takes at once, but for what the guest keeps.
func (m resizable) ResizeMemory(ctx context.Context, bytes uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	added, err := m.Config.Added(bytes)
	if err != nil {
		return m.memory, err
	}
	m.memory = m.Config.Memory + max(added, min(m.driver.Stuck, m.memory-m.Config.Memory))
	m.resized = append(m.resized, fmt.Sprintf("%d MiB", m.memory>>20))
	if m.memory > m.Config.Memory+added {
		return m.memory, fmt.Errorf("%d MiB remain: %w", m.memory>>20, errdefs.ErrFailedPrecondition)
	}
	return m.memory, nil
}

// ResizeVCPUs is done at once.
func (m resizable) ResizeVCPUs(_ context.Context, n int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resized = append(m.resized, fmt.Sprintf("%d processors", n))
	return n, m.Config.CheckVCPUs(n)
}

// Resizes lists what was resized.
func (m *Machine) Resizes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.resized)
}

// PID is the test's own.
func (m *Machine) PID() int { return os.Getpid() }

// Dial connects to the agent.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if m.driver.NoDialer || m.driver.Agent == nil {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-m.done:
			return nil, errors.New("the VM has ended")
		}
	}
	host, guest, err := Pair()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		host.Close()
		guest.Close()
		return nil, errors.New("the VM has ended")
	}
	m.conns = append(m.conns, guest)
	m.driver.Agent.Serve(port, guest)
	return host, nil
}

// Pair is two connected Unix sockets.
func Pair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	conns := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		if conns[i], err = net.FileConn(f); err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// End ends the machine with a reason, as a VMM that dies.
func (m *Machine) End(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	m.ended, m.err = true, err
	for _, c := range m.conns {
		c.Close()
	}
	close(m.done)
}

// Counters are two, of the disks that ever were.
func (m *Machine) Counters(context.Context) ([]hypervisor.Counter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []hypervisor.Counter{
		{CounterName: hypervisor.CounterName{Kind: hypervisor.Operations, Part: hypervisor.PartDisk, Direction: hypervisor.In}, Value: uint64(m.Attached)},
		{CounterName: hypervisor.CounterName{Kind: hypervisor.Failures, Part: hypervisor.PartDisk}},
	}, nil
}

// Shutdown waits for the end.
func (m *Machine) Shutdown(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill ends the machine.
func (m *Machine) Kill() error {
	m.End(errors.New("killed"))
	return nil
}

// Done is closed at the end.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err says why.
func (m *Machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// AttachDisk gives the disk the next LUN.
func (m *Machine) AttachDisk(_ context.Context, disk hypervisor.Disk) (hypervisor.DiskAddress, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	address := hypervisor.DiskAddress{Kind: hypervisor.SCSILUN, LUN: m.next}
	m.next++
	m.Attached++
	m.Plugged[disk.ID] = address
	return address, nil
}

// DetachDisk removes it.
func (m *Machine) DetachDisk(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.Plugged[id]; !ok {
		return fmt.Errorf("no disk %s", id)
	}
	delete(m.Plugged, id)
	return nil
}

// Disks counts those that are plugged now.
func (m *Machine) Disks() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.Plugged)
}
