package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agentclient"
	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Phase is a part of a VM's start.
type Phase struct {
	Name     string
	Duration time.Duration
}

// The phases of a start, in order.
const (
	PhaseNetwork   = "network"
	PhaseVMM       = "vmm"
	PhaseKernel    = "kernel+agent"
	PhaseConfigure = "configure"
)

// VM is a running microVM with its agent.
type VM struct {
	id      string
	runDir  string
	machine hypervisor.VM
	agent   *agentclient.Client
	console *console
	disks   *disks
	shares  *shares
	sizing  sizing
	phases  []Phase
	version string

	// done is closed when everything of the VM has been let go.
	done chan struct{}

	mu sync.Mutex
	// cause is why the VM was ended by us; nil where it ended by itself.
	cause error
	err   error
}

// Agent is the connection to the guest.
func (v *VM) Agent() *agentclient.Client { return v.agent }

// PID of the VMM.
func (v *VM) PID() int { return v.machine.PID() }

// Phases of the start with their durations.
func (v *VM) Phases() []Phase { return v.phases }

// Version is what the VMM said of itself.
func (v *VM) Version() string { return v.version }

// Counters are what the VMM counts of its own work. One that hangs is waited for as long as for any answer of a VMM.
func (v *VM) Counters(ctx context.Context) ([]hypervisor.Counter, error) {
	meter, ok := v.machine.(hypervisor.Meter)
	if !ok {
		return nil, fmt.Errorf("hypervisor %s counts nothing: %w", v.sizing.driver, errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithTimeout(ctx, hypervisor.ControlTimeout)
	defer cancel()
	return meter.Counters(ctx)
}

// Done is closed once the VMM was reaped and everything of the VM on the host was let go.
func (v *VM) Done() <-chan struct{} { return v.done }

// Err is nil until Done; then why the VM ended. It is never nil after that.
func (v *VM) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// AttachDisks attaches disks, each once for all containers, and counts a user for each. The caller gives them back with
// ReleaseDisks.
func (v *VM) AttachDisks(ctx context.Context, disks []Disk) ([]*agentv1.DiskAddress, error) {
	return v.disks.acquire(ctx, disks)
}

// ReleaseDisks ends the use of disks and detaches those that the guest says are free.
func (v *VM) ReleaseDisks(ctx context.Context, disks []Disk, free []*agentv1.DiskAddress) error {
	v.disks.drop(disks)
	if v.disks.plugger == nil {
		return nil
	}
	return v.disks.detach(ctx, free)
}

// Stop takes the VM down: the agent is told to power off, then the VMM to quit, and when ctx ends it is killed. It
// returns when the VM is gone, which is soon after ctx's end at the latest. It is idempotent.
func (v *VM) Stop(ctx context.Context) error {
	v.setCause(errors.New("it was stopped"))
	// The guest may be the reason for the stop: it gets no more than half of the time to be polite.
	polite, cancel := half(ctx)
	defer cancel()
	if err := v.agent.Shutdown(polite); err == nil {
		err = v.machine.Shutdown(polite)
		if err == nil {
			<-v.done
			return nil
		}
	}
	select {
	case <-v.done:
		return nil
	default:
	}
	return v.kill(ctx)
}

// half bounds the polite part of a stop.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, hypervisor.ControlTimeout)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

// Kill ends the VM at once and waits until it has gone.
func (v *VM) Kill(ctx context.Context, cause error) error {
	v.setCause(cause)
	return v.kill(ctx)
}

func (v *VM) kill(ctx context.Context) error {
	if err := v.machine.Kill(); err != nil {
		return fmt.Errorf("kill VM %s: %w", v.id, err)
	}
	// A killed process is reaped in moments, whatever has become of ctx.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), hypervisor.ControlTimeout)
	defer cancel()
	select {
	case <-v.done:
		return nil
	case <-bounded.Done():
		return fmt.Errorf("kill VM %s: process %d does not end: %w", v.id, v.machine.PID(), bounded.Err())
	}
}

func (v *VM) setCause(cause error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cause == nil {
		v.cause = cause
	}
}

// supervise ends the VM when the agent is lost, and lets everything go when the VM has ended.
func (v *VM) supervise() {
	ctx, cancel := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() {
		// Without it the guest's clock is only right from boot on; that is no reason to end a VM.
		_ = v.keepClock(ctx)
	})
	select {
	case <-v.machine.Done():
	case <-v.agent.Done():
		v.lostAgent()
	}
	<-v.machine.Done()
	v.agent.Close()
	v.shares.close()
	v.mu.Lock()
	stopped := v.cause != nil
	v.err = v.cause
	if v.err == nil {
		v.err = endReason(v.machine)
	}
	v.mu.Unlock()
	cancel()
	watch.Wait()
	v.console.Close()
	if stopped && errors.Is(v.machine.Err(), hypervisor.ErrPoweredOff) {
		v.console.discard()
	}
	os.RemoveAll(v.runDir)
	close(v.done)
}

// endReason says why a machine that is done has ended.
func endReason(m hypervisor.VM) error {
	if err := m.Err(); err != nil {
		return err
	}
	return errors.New("the guest powered off")
}

// lostAgent gives a VMM that is about to exit the time to do so, which says more than the broken connection, and
// ends one that lives on: without its agent a guest is of no use to anybody.
func (v *VM) lostAgent() {
	v.mu.Lock()
	stopping := v.cause != nil
	v.mu.Unlock()
	if stopping {
		return // Stop or Kill sees to the end
	}
	grace := time.NewTimer(lostAgentGrace)
	defer grace.Stop()
	select {
	case <-v.machine.Done():
	case <-grace.C:
		v.setCause(withConsole(errors.New("the agent in the guest has gone"), v.console))
		// What cannot be killed is reported by whoever waits for it.
		_ = v.machine.Kill()
	}
}

// lostAgentGrace is how long the VMM may outlive the agent's connection.
const lostAgentGrace = 2 * time.Second

// withConsole adds the guest's last words to an error.
func withConsole(err error, c *console) error {
	words := c.lastWords()
	if words == "" {
		return fmt.Errorf("%w (the guest wrote nothing to its console)", err)
	}
	return fmt.Errorf("%w; the guest's last console lines:\n%s", err, words)
}
