package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

const (
	// consoleTail is how many bytes of the console are kept for errors.
	consoleTail = 4 << 10
	// deathTimeout is how long a VMM that has closed its control socket gets to exit by itself and say why.
	deathTimeout = 2 * time.Second
)

// DialFunc opens a stream to a port of the guest.
type DialFunc func(ctx context.Context, port uint32) (net.Conn, error)

// Machine is the life of a virtual machine, from its process's start on: what every driver's VM is beside the control of
// its VMM.
type Machine struct {
	*Process
	Console *Tail
	dial    DialFunc
	life    context.Context // ends with the VM
	over    chan struct{}
	err     error // set before over is closed

	resizing sync.Mutex // one change of the memory at a time
}

// Watch takes over a process that was just started and its end of the guest's console, which is read until its end and
// closed. end is called when the process was reaped and all of the console is in, which may be before Watch returns: it
// ends what else belongs to the VM and says why the machine ended; ErrPoweredOff as it is, everything else is completed with the last words of VMM and guest,
// and nil is how the process ended.
func Watch(p *Process, console io.ReadCloser, to io.Writer, dial DialFunc, end func(*Machine) error) *Machine {
	life, cancel := context.WithCancelCause(context.Background())
	m := &Machine{Process: p, Console: NewTail(consoleTail, ""), dial: dial, life: life, over: make(chan struct{})}
	var reader sync.WaitGroup
	reader.Go(func() { follow(console, m.Console, to) })
	go func() {
		<-p.done
		reader.Wait()
		console.Close()
		m.err = m.why(end(m))
		cancel(m.err)
		close(m.over)
	}()
	return m
}

// follow copies the guest's console until its end.
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

// why completes the reason of the end.
func (m *Machine) why(err error) error {
	switch poweredOff := errors.Is(err, hypervisor.ErrPoweredOff); {
	case poweredOff && m.Success():
		return hypervisor.ErrPoweredOff
	case !poweredOff && err != nil: // the driver knows better: it may have killed the VMM for that
	case m.Killed():
		err = fmt.Errorf("%s %w", m.name, hypervisor.ErrKilled)
	default:
		err = errors.New(m.End())
	}
	if said := m.Said(5); said != "" {
		err = fmt.Errorf("%w; it said: %s", err, said)
	}
	if seen := m.Console.Lines(10); seen != "" {
		err = fmt.Errorf("%w; the guest's last console lines: %s", err, seen)
	}
	return err
}

// Done is closed once, after the VMM was reaped and everything of the VM was let go.
func (m *Machine) Done() <-chan struct{} { return m.over }

// Err is nil until Done; then why the VM ended.
func (m *Machine) Err() error {
	select {
	case <-m.over:
		return m.err
	default:
		return nil
	}
}

// Ended is the error of a call that the VM's end has cut off.
func (m *Machine) Ended() error {
	<-m.over
	return fmt.Errorf("the VM has ended: %w: %w", m.err, errdefs.ErrUnavailable)
}

// Dial opens a stream to a port of the guest.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(m.life, func() { cancel(context.Cause(m.life)) })
	defer stop()
	conn, err := m.dial(ctx, port)
	if err != nil && m.life.Err() != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", port, m.Ended())
	}
	return conn, err
}

// Shutdown waits for the guest's end; when ctx ends first the VMM is made to quit, and gets ControlTimeout for it.
func (m *Machine) Shutdown(ctx context.Context, quit func(context.Context) error) error {
	select {
	case <-m.over:
		return nil
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hypervisor.ControlTimeout)
	defer cancel()
	err := quit(ctx)
	select {
	case <-m.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not quit within %v: %w", m.name, hypervisor.ControlTimeout, errors.Join(err, ctx.Err()))
	}
}

// Abort ends a VMM that could not be started and returns why: its own last words where it died by itself.
func (m *Machine) Abort(cause error) error {
	if errdefs.IsUnavailable(cause) { // the control socket has gone, as it does when the VMM exits
		select {
		case <-m.Process.done:
		case <-time.After(deathTimeout):
		}
	}
	select {
	case <-m.Process.done:
		<-m.over
		return fmt.Errorf("%w: %w", m.err, errdefs.ErrFailedPrecondition)
	default:
	}
	err := m.Kill()
	select {
	case <-m.over:
	case <-time.After(hypervisor.ControlTimeout):
		err = errors.Join(err, fmt.Errorf("%s, process %d, does not die: %w", m.name, m.PID(), errdefs.ErrInternal))
	}
	if said := m.Said(5); said != "" {
		cause = fmt.Errorf("%w (%s said: %s)", cause, m.name, said)
	}
	return errors.Join(cause, err)
}
