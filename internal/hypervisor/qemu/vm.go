package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu/qmp"
)

type dialFunc func(ctx context.Context, port uint32) (net.Conn, error)

// vm is a running QEMU.
type vm struct {
	proc    *process
	console *tail
	dial    dialFunc
	disks   *disks

	life context.Context // ends with the VM
	done chan struct{}
	err  error // set before done is closed

	mu      sync.Mutex
	monitor *qmp.Client
	reason  string // of QEMU's SHUTDOWN event
}

var (
	_ hypervisor.DiskPlugger = (*vm)(nil)
	_ hypervisor.Pauser      = (*vm)(nil)
)

// newVM watches over a QEMU that was just started, and owns it and the gift's sockets from now on, except
// the monitor's.
func newVM(cfg hypervisor.Config, proc *process, g *gift) *vm {
	dial, pipe := g.dialer()
	life, end := context.WithCancelCause(context.Background())
	v := &vm{
		proc: proc, dial: dial, console: &tail{max: consoleTail}, disks: newDisks(cfg.Disks),
		life: life, done: make(chan struct{}),
	}
	var console sync.WaitGroup
	console.Go(func() { follow(g.console, v.console, cfg.Console) })
	go func() {
		<-proc.done
		console.Wait()
		g.console.Close()
		if pipe != nil {
			<-pipe.Done() // the last bytes of streams are in
			pipe.Close()
		}
		if monitor := v.currentMonitor(); monitor != nil {
			<-monitor.Done() // the last events are in
			monitor.Close()
		}
		v.err = v.why()
		end(v.err)
		close(v.done)
	}()
	return v
}

// follow copies the guest's console until QEMU has gone.
func follow(console io.Reader, to ...io.Writer) {
	buf := make([]byte, 4<<10)
	for {
		n, err := console.Read(buf)
		for _, w := range to {
			if w != nil {
				w.Write(buf[:n]) // a writer that fails loses its copy, and nothing else
			}
		}
		if err != nil {
			return
		}
	}
}

func (v *vm) setMonitor(c *qmp.Client) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.monitor = c
}

func (v *vm) currentMonitor() *qmp.Client {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.monitor
}

// observe notes why QEMU is about to exit.
func (v *vm) observe(e qmp.Event) {
	if e.Name != "SHUTDOWN" {
		return
	}
	var data struct{ Reason string }
	if json.Unmarshal(e.Data, &data) != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reason = data.Reason
}

// why says how the VM ended. It is called after the process and the monitor have ended.
func (v *vm) why() error {
	v.mu.Lock()
	reason := v.reason
	v.mu.Unlock()
	var err error
	switch {
	case !v.proc.cmd.ProcessState.Success():
		err = errors.New(v.proc.end())
	case reason == "guest-shutdown":
		return hypervisor.ErrPoweredOff
	case reason == "guest-reset":
		err = errors.New("the guest reset itself, as a kernel does that panics")
	case reason == "host-qmp-quit":
		return errors.New("QEMU was told to quit")
	case reason != "":
		err = fmt.Errorf("QEMU shut down: %s", reason)
	default:
		err = errors.New(v.proc.end())
	}
	if said := v.proc.stderr.lines(5); said != "" {
		err = fmt.Errorf("%w; it said: %s", err, said)
	}
	if seen := v.console.lines(10); seen != "" {
		err = fmt.Errorf("%w; the guest's last console lines: %s", err, seen)
	}
	return err
}

func (v *vm) PID() int              { return v.proc.cmd.Process.Pid }
func (v *vm) Kill() error           { return v.proc.kill() }
func (v *vm) Done() <-chan struct{} { return v.done }

func (v *vm) Err() error {
	select {
	case <-v.done:
		return v.err
	default:
		return nil
	}
}

// Dial opens a stream to a port of the guest.
func (v *vm) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(v.life, func() { cancel(context.Cause(v.life)) })
	defer stop()
	conn, err := v.dial(ctx, port)
	if err != nil && v.life.Err() != nil {
		return nil, fmt.Errorf("dial guest port %d: the VM has ended: %w: %w", port, v.err, errdefs.ErrUnavailable)
	}
	return conn, err
}

// Shutdown waits for the guest's end; when ctx ends first QEMU is told to quit, and gets ControlTimeout for it.
func (v *vm) Shutdown(ctx context.Context) error {
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hypervisor.ControlTimeout)
	defer cancel()
	quit := v.tell(ctx, "quit")
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("QEMU does not quit within %v: %w", hypervisor.ControlTimeout, errors.Join(quit, ctx.Err()))
	}
}

// Pause stops the guest's processors.
func (v *vm) Pause(ctx context.Context) error { return v.tell(ctx, "stop") }

// Resume continues them.
func (v *vm) Resume(ctx context.Context) error { return v.tell(ctx, "cont") }

// tell has QEMU run a command without arguments.
func (v *vm) tell(ctx context.Context, command string) error {
	return v.currentMonitor().Execute(ctx, command, nil, nil)
}
