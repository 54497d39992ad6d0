package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/vmpod"
)

// machines decides which hypervisor runs a VM, with which kernel.
type machines struct {
	vm      config.VM
	guest   guestFiles
	accel   *accelerator
	kernels *vmlinuxes
	log     *slog.Logger
	// chosen is the hypervisor that was last chosen for those who named none, to tell of changes.
	chosen atomic.Value
}

// candidates are the hypervisors that a handler's name stands for, the preferred first.
func candidates(name string) []string {
	if name != "" {
		return []string{name}
	}
	return config.Hypervisors()
}

// ready tells, without waiting for anything, why no VM can be run by the hypervisor, or by any where none is named.
func (m *machines) ready(name string) error {
	var none error
	for _, candidate := range candidates(name) {
		_, err := m.vm.FindVMM(candidate)
		// Where it is not known yet whether KVM works, the first pod waits until it is.
		if known := m.accel.known.Load(); err == nil && known != nil {
			err = m.suits(candidate, known.kind)
		}
		if err == nil {
			return nil
		}
		none = also(none, err)
	}
	return none
}

// also adds an error to others in one line.
func also(others, err error) error {
	if others == nil {
		return err
	}
	return fmt.Errorf("%w; %w", others, err)
}

// suits refuses hypervisors that cannot emulate on a host where guests have to be emulated.
func (m *machines) suits(name string, accel hypervisor.Acceleration) error {
	if name == config.DriverQEMU || accel == hypervisor.KVM {
		return nil
	}
	reason := ""
	if known := m.accel.known.Load(); known != nil {
		reason = ": " + known.reason
	}
	return fmt.Errorf("%s needs KVM, and guests are emulated on this host%s; use a RuntimeClass of QEMU, or a host whose KVM works: %w",
		name, reason, errdefs.ErrFailedPrecondition)
}

// choose finds the hypervisor, or the first that works where none is named, and what its VMs boot.
func (m *machines) choose(ctx context.Context, name string) (vmpod.Machine, error) {
	guest, err := m.guest.find()
	if err != nil {
		return vmpod.Machine{}, err
	}
	accel, err := m.accel.get(ctx)
	if err != nil {
		return vmpod.Machine{}, err
	}
	var passedOver error
	for _, candidate := range candidates(name) {
		path, err := m.vm.FindVMM(candidate)
		if err == nil {
			err = m.suits(candidate, accel)
		}
		if err != nil {
			passedOver = also(passedOver, err)
			continue
		}
		if candidate == config.DriverFirecracker {
			if guest.Kernel, err = m.kernels.get(guest.Kernel); err != nil {
				return vmpod.Machine{}, err
			}
		}
		if name == "" {
			m.tell(ctx, candidate, passedOver)
		}
		return vmpod.Machine{Hypervisor: candidate, Binary: path, Accel: accel, Guest: guest}, nil
	}
	return vmpod.Machine{}, passedOver
}

// tell logs a choice when it is another than before, with what spoke against those that are preferred.
func (m *machines) tell(ctx context.Context, name string, passedOver error) {
	if m.chosen.Swap(name) == name {
		return
	}
	reason := "it is the preferred one"
	if passedOver != nil {
		reason = passedOver.Error()
	}
	m.log.InfoContext(ctx, "decided which hypervisor runs pods that name none", logfields.Hypervisor, name, logfields.Reason, reason)
}
