package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/cgroup"
)

// Cleanup ends what is left of a sandbox, living or dead: VMM, shim, everything else in the pod's cgroup, the cgroup
// and the sockets. The directory stays, with its logs; Remove takes it. It is idempotent. ctx bounds the waiting.
func (d Dir) Cleanup(ctx context.Context) error {
	var errs []error
	// The shim first: it may be about to start a VMM.
	shim, err := d.ReadShim()
	if err == nil {
		if shim.Process.PID != os.Getpid() {
			errs = append(errs, shim.Process.Kill(ctx))
		}
	} else if !errdefs.IsNotFound(err) {
		errs = append(errs, err)
	}
	vmm, err := d.ReadVMM()
	if err == nil {
		errs = append(errs, vmm.Kill(ctx))
	} else if !errdefs.IsNotFound(err) {
		errs = append(errs, err)
	}
	if shim.Cgroup != "" {
		errs = append(errs, removeCgroup(ctx, shim.Cgroup))
	}
	for _, path := range []string{d.ShimSocket(), d.StreamSocket(), d.RunDir()} {
		errs = append(errs, os.RemoveAll(path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up %s: %w", d, err)
	}
	return nil
}

func removeCgroup(ctx context.Context, path string) error {
	group, err := cgroup.Open(path)
	if err != nil {
		return err
	}
	if err := group.Kill(ctx, os.Getpid()); err != nil {
		return err
	}
	return group.Remove(ctx)
}
