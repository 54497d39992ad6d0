package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/agentclient"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/network/tap"
	"github.com/pistis-run/pistis/internal/steps"
)

// entropySize is how much randomness a guest starts with, in bytes.
const entropySize = 64

// stopwatch records phases, which are steps too.
type stopwatch struct{ phases []Phase }

func (s *stopwatch) begin(ctx context.Context, name string) (_ context.Context, end func()) {
	began := time.Now()
	ctx, ended := steps.Start(ctx, "vm "+name)
	return ctx, func() {
		ended()
		s.phases = append(s.phases, Phase{Name: name, Duration: time.Since(began)})
	}
}

// Boot starts a VM and makes its guest the pod's. The boot timeout of the options bounds it, and ctx. On error
// nothing is left running.
func Boot(ctx context.Context, req Request) (_ *VM, err error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	options := req.Options.GetVm()
	limit := bootTimeout(options)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var watch stopwatch
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)

	phase, end := watch.begin(ctx, PhaseNetwork)
	nics, err := prepare(phase, req)
	// The VMM has its own descriptors once it runs.
	defer closeTaps(nics)
	if err != nil {
		return nil, fmt.Errorf("boot VM %s: %w", req.ID, err)
	}
	end()
	if err := failpoint.Hit(ctx, "vm.network"); err != nil {
		return nil, err
	}
	v := &VM{id: req.ID, runDir: req.RunDir, done: make(chan struct{})}
	phase, end = watch.begin(ctx, PhaseVMM)
	if err := v.startMachine(phase, req, nics, &undo); err != nil {
		return nil, err
	}
	end()
	aside := v.askAside(ctx, req)
	defer aside.wait()

	phase, end = watch.begin(ctx, PhaseKernel)
	scratch, err := v.attachOwn(phase, scratchID, req.Options.Scratch, false)
	if err != nil {
		return nil, v.bootError(limit, err)
	}
	modules, err := v.attachOwn(phase, modulesID, req.Options.Modules, true)
	if err != nil {
		return nil, v.bootError(limit, err)
	}
	if err := v.connect(phase, options, &undo); err != nil {
		return nil, v.bootError(limit, err)
	}
	v.shares = newShares(req.ShareServer, v.agent, v.machine)
	end()

	phase, end = watch.begin(ctx, PhaseConfigure)
	aside.wait()
	if aside.err != nil {
		return nil, fmt.Errorf("boot VM %s: %w", req.ID, aside.err)
	}
	if err := v.agent.ConfigureSandbox(phase, configureRequest(req.Options, nics, aside.sysctls, scratch, modules)); err != nil {
		if errdefs.IsUnavailable(err) {
			err = v.connectError(ctx, err)
		}
		return nil, v.bootError(limit, err)
	}
	end()
	v.phases = watch.phases
	undo.Release()
	go v.supervise() // ends with the VM and closes done
	return v, nil
}

// prepare attaches the network and does beside it what else comes before the VMM. The NICs are the caller's, also
// with an error.
func prepare(ctx context.Context, req Request) (nics []tap.NIC, err error) {
	var other error
	var beside sync.WaitGroup
	if req.Prepare != nil {
		beside.Go(func() {
			_, end := steps.Start(ctx, "cgroup")
			defer end()
			other = req.Prepare()
		})
	}
	if req.NetNS != "" {
		ctx, end := steps.Start(ctx, "taps")
		nics, err = req.AttachNetwork(ctx, req.NetNS)
		end()
	}
	beside.Wait()
	return nics, errors.Join(err, other)
}

func closeTaps(nics []tap.NIC) {
	for _, nic := range nics {
		nic.Tap.Close()
	}
}

// startMachine starts the VMM with its console and run directory.
func (v *VM) startMachine(ctx context.Context, req Request, nics []tap.NIC, undo *cleanup.Stack) error {
	var err error
	if v.console, err = openConsole(req.ConsoleLog); err != nil {
		return fmt.Errorf("boot VM %s: %w", req.ID, err)
	}
	undo.Add("close console log", func(context.Context) error { return v.console.Close() })
	if err := os.MkdirAll(req.RunDir, 0o700); err != nil {
		return fmt.Errorf("boot VM %s: %w", req.ID, err)
	}
	undo.Add("remove run directory", func(context.Context) error { return os.RemoveAll(req.RunDir) })
	config := Config(req.ID, req.Options.GetVm(), nics)
	config.Limit(req.Driver.Capabilities())
	config.Console, config.RunDir, config.Started = v.console, req.RunDir, req.Started
	if u := config.User; u != nil {
		if err := os.Chown(req.RunDir, int(u.UID), int(u.GID)); err != nil {
			return fmt.Errorf("boot VM %s: %w", req.ID, err)
		}
	}
	if v.machine, err = req.Driver.Start(ctx, config); err != nil {
		return fmt.Errorf("boot VM %s: %w", req.ID, err)
	}
	undo.Add("kill VMM", v.killMachine)
	v.sizing = newSizing(req.Driver.Name(), config)
	plugger, _ := v.machine.(hypervisor.DiskPlugger)
	v.disks = newDisks(plugger, req.Driver.Capabilities().MaxDisks)
	return nil
}

// aside is what is found out while the guest boots.
type aside struct {
	wait    func()
	sysctls map[string]string
	err     error
}

// askAside asks the VMM for its version, which is for people only, and the network namespace for its sysctls.
func (v *VM) askAside(ctx context.Context, req Request) *aside {
	var asked sync.WaitGroup
	a := &aside{wait: asked.Wait}
	asked.Go(func() {
		version, err := req.Driver.Version(ctx, req.Options.GetVm().GetBinary())
		if err != nil {
			version = "unknown: " + err.Error()
		}
		v.version = version
	})
	if req.NetNS != "" && req.InspectNetwork != nil {
		asked.Go(func() {
			ctx, end := steps.Start(ctx, "inspect network")
			defer end()
			report, err := req.InspectNetwork(ctx, req.NetNS)
			a.sysctls, a.err = report.Sysctls, err
		})
	}
	return a
}

func (v *VM) killMachine(ctx context.Context) error {
	if err := v.machine.Kill(); err != nil {
		return err
	}
	select {
	case <-v.machine.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attachOwn attaches a disk of the sandbox's own while the guest's kernel boots.
func (v *VM) attachOwn(ctx context.Context, id, path string, readOnly bool) (*agentv1.DiskAddress, error) {
	if path == "" {
		return nil, nil
	}
	if v.disks.plugger == nil {
		return nil, fmt.Errorf("attach %s disk: this VM cannot attach disks", id)
	}
	ctx, end := steps.Start(ctx, "plug "+id)
	defer end()
	v.disks.max-- // one of the VM's disks is taken
	address, err := plug(ctx, v.disks.plugger, id, Disk{Path: path, ReadOnly: readOnly})
	if err != nil {
		return nil, fmt.Errorf("attach %s disk: %w", id, err)
	}
	return address, nil
}

// connect waits for the agent.
func (v *VM) connect(ctx context.Context, options *shimv1.VMOptions, undo *cleanup.Stack) error {
	limit := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A VMM that ends early must not be waited for.
	connected := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-v.machine.Done():
			cancel()
		case <-connected:
		}
	})
	defer watch.Wait()
	defer close(connected)
	ctx, end := steps.Start(ctx, "agent handshake")
	defer end()
	agent, err := agentclient.Connect(ctx, v.machine.Dial, options.GetAgentTimeout().AsDuration())
	if err != nil {
		return v.connectError(limit, err)
	}
	v.agent = agent
	undo.Add("close agent connection", func(context.Context) error { return agent.Close() })
	return nil
}

// connectError finds the reason behind a connection that failed: time, or the end of the VMM, which may take a
// moment to be noticed.
func (v *VM) connectError(limit context.Context, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) && !errdefs.IsFailedPrecondition(err) {
		grace := time.NewTimer(lostAgentGrace)
		defer grace.Stop()
		select {
		case <-v.machine.Done():
			return fmt.Errorf("the virtual machine ended: %w: %w", endReason(v.machine), errdefs.ErrUnavailable)
		case <-limit.Done():
		case <-grace.C:
		}
	}
	return err
}

// bootError says what the guest's last words were, unless the error is clear without them or has them already: the
// machine's own end does.
func (v *VM) bootError(limit time.Duration, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the guest was not ready within %s: %w", limit, err)
	}
	select {
	case <-v.machine.Done():
	default:
		if !isRefusal(err) {
			err = withConsole(err, v.console)
		}
	}
	return fmt.Errorf("boot VM %s: %w", v.id, err)
}

// isRefusal tells an error that is about what was asked for from one that is about the guest's state.
func isRefusal(err error) bool {
	return errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err)
}

func configureRequest(o *shimv1.SandboxOptions, nics []tap.NIC, sysctls map[string]string, scratch, modules *agentv1.DiskAddress) *agentv1.ConfigureSandboxRequest {
	entropy := make([]byte, entropySize)
	rand.Read(entropy) // never fails
	return &agentv1.ConfigureSandboxRequest{
		Hostname:   o.GetHostname(),
		Domainname: o.GetDomainname(),
		Network:    guestNetwork(nics),
		Hosts:      o.GetHosts(),
		ResolvConf: o.GetResolvConf(),
		Sysctls:    guestSysctls(nics, sysctls, o.GetSysctls()),
		Clock:      timestamppb.Now(),
		Entropy:    entropy,
		Scratch:    scratch,
		Modules:    modules,
		SharedPid:  o.GetSharedPid(),
		ShmSize:    o.GetShmSize(),
	}
}
