package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/drivers"
	"github.com/pistis-run/pistis/internal/hypervisor/kvmprobe"
	"github.com/pistis-run/pistis/internal/logfields"
)

// accelerator decides how guests run: as the configuration says, or, once, by running one under KVM.
type accelerator struct {
	vm      config.VM
	guest   guestFiles
	kernels *vmlinuxes
	// cacheDir keeps the answer for the next daemon.
	cacheDir string
	log      *slog.Logger

	// turn holds one token: whoever has it may look at decided and probe.
	turn    chan struct{}
	decided hypervisor.Acceleration
	// known is decided for those who do not wait, with the reason.
	known atomic.Pointer[acceleration]
}

// acceleration is how guests run and how that was found out.
type acceleration struct {
	kind   hypervisor.Acceleration
	reason string
}

func newAccelerator(vm config.VM, guest guestFiles, kernels *vmlinuxes, cacheDir string, log *slog.Logger) *accelerator {
	a := &accelerator{vm: vm, guest: guest, kernels: kernels, cacheDir: cacheDir, log: log, turn: make(chan struct{}, 1)}
	a.turn <- struct{}{}
	if vm.Acceleration != "auto" {
		a.known.Store(&acceleration{hypervisor.Acceleration(vm.Acceleration), "the configuration says so"})
	}
	return a
}

// get answers at once where it is decided. Otherwise it waits for the test guest, at most as long as ctx lasts.
func (a *accelerator) get(ctx context.Context) (hypervisor.Acceleration, error) {
	if a.vm.Acceleration != "auto" {
		return hypervisor.Acceleration(a.vm.Acceleration), nil
	}
	select {
	case <-a.turn:
		defer func() { a.turn <- struct{}{} }()
	case <-ctx.Done():
		return "", fmt.Errorf("acceleration: waiting for the test guest: %w", ctx.Err())
	}
	if a.decided != "" {
		return a.decided, nil
	}
	probe, err := a.probe()
	if err != nil {
		return "", err
	}
	usable, reason, err := kvmprobe.Run(ctx, probe)
	if err != nil {
		return "", fmt.Errorf("acceleration: %w", err)
	}
	a.decided = hypervisor.TCG
	if usable {
		a.decided = hypervisor.KVM
	}
	a.known.Store(&acceleration{a.decided, reason})
	a.log.Info("decided how guests run", logfields.Acceleration, a.decided, logfields.Reason, reason)
	return a.decided, nil
}

// probe describes the test guest: that of pods, in the first of the VMMs that is there. Whether KVM works does not depend
// on which it is.
func (a *accelerator) probe() (kvmprobe.Config, error) {
	guest, err := a.guest.find()
	if err != nil {
		return kvmprobe.Config{}, err
	}
	var none error
	for _, name := range candidates("") {
		path, err := a.vm.FindVMM(name)
		if err != nil {
			none = also(none, err)
			continue
		}
		probe := kvmprobe.Config{
			Driver: drivers.All()[name], Binary: path, Kernel: guest.Kernel, Initrd: guest.Initrd, User: a.user(), CacheDir: a.cacheDir,
		}
		if probe.Driver.Capabilities().ELFKernel {
			probe.Vmlinux, err = a.kernels.get(guest.Kernel)
		}
		return probe, err
	}
	return kvmprobe.Config{}, none
}

// user is one of those that VMMs run as: KVM must work for them.
func (a *accelerator) user() *hypervisor.User {
	first, _, err := a.vm.UIDRange()
	if err != nil || first == 0 {
		return nil
	}
	return &hypervisor.User{UID: first, GID: first}
}
