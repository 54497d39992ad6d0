package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/cri"
	"github.com/pistis-run/pistis/internal/guestimage"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/snapshot"
	"github.com/pistis-run/pistis/internal/vmpod"
)

// handlers are the runtime handlers of the configuration with what runs their pods.
type handlers struct {
	cfg       config.Config
	guest     guestFiles
	accel     *accelerator
	launchers map[string]sandbox.Launcher
}

// guestFiles finds the guest's kernel and initrd: those of the configuration, else those that were built. They are
// looked for each time, so that a guest that is built while the daemon runs is taken.
type guestFiles struct {
	kernel, initrd string
	built          string
}

func (g guestFiles) find() (kernel, initrd string, err error) {
	if g.kernel == "" {
		guest, err := guestimage.Load(g.built)
		if errdefs.IsNotFound(err) {
			return "", "", fmt.Errorf("no guest kernel in %s: run `pistis guest build`, or set vm.kernel and vm.initrd in pistisd's configuration: %w",
				g.built, errdefs.ErrFailedPrecondition)
		}
		return guest.Kernel, guest.Initrd, err
	}
	for key, path := range map[string]string{"vm.kernel": g.kernel, "vm.initrd": g.initrd} {
		if _, err := os.Stat(path); err != nil {
			return "", "", fmt.Errorf("%s: %w: %w", key, err, errdefs.ErrFailedPrecondition)
		}
	}
	return g.kernel, g.initrd, nil
}

// ready says whether pods of a handler can be run now.
func (h *handlers) ready(handler config.Handler) error {
	if _, _, err := h.guest.find(); err != nil {
		return err
	}
	if _, err := h.cfg.VM.FindShim(handler); err != nil {
		return err
	}
	if _, err := h.cfg.VM.FindQEMU(); err != nil {
		return err
	}
	return snapshot.Ready()
}

// forCRI are the handlers as the CRI server wants to know them.
func (h *handlers) forCRI() cri.Handlers {
	out := cri.Handlers{Default: h.cfg.DefaultHandler, Untrusted: h.cfg.UntrustedHandler, ByName: map[string]cri.Handler{}}
	for name, handler := range h.cfg.Handlers {
		out.ByName[name] = cri.Handler{
			VM:    handler.Type == config.HandlerVM,
			Ready: func() error { return h.ready(handler) },
		}
	}
	return out
}

// openHandlers makes a launcher for each handler. One whose shim or guest is missing is made too: it is not ready, and
// becomes so when they are installed.
func openHandlers(cfg config.Config, p paths, layers *snapshot.Disks, log *slog.Logger) (*handlers, error) {
	h := &handlers{
		cfg: cfg, launchers: map[string]sandbox.Launcher{},
		guest: guestFiles{kernel: cfg.VM.Kernel, initrd: cfg.VM.Initrd, built: p.guest()},
	}
	h.accel = newAccelerator(cfg.VM, h.guest, cfg.Root, log)
	first, last, err := cfg.VM.UIDRange()
	if err != nil {
		return nil, fmt.Errorf("daemon: vm.uids: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	uids := vmpod.NewUIDs(first, last)
	for name, handler := range cfg.Handlers {
		shim, err := cfg.VM.FindShim(handler)
		if err != nil {
			shim = config.ShimName
		}
		h.launchers[name], err = vmpod.New(vmpod.Options{
			Config: cfg.VM, Hypervisor: handler.Hypervisor, Shim: shim, Guest: h.guest.find, Accel: h.accel.get,
			NewScratch: layers.NewScratch, UIDs: uids, Dir: p.pods(), ScratchDir: p.scratch(), CgroupParent: cfg.CgroupParent, Log: log,
		})
		if err != nil {
			return nil, fmt.Errorf("daemon: handler %s: %w", name, err)
		}
	}
	return h, nil
}

// warmUp finds out how guests run before the first pod has to wait for it. It ends with ctx.
func (h *handlers) warmUp(ctx context.Context, log *slog.Logger) {
	if _, err := h.accel.get(ctx); err != nil && ctx.Err() == nil {
		log.Warn("how guests run is not decided yet", logfields.Error, err)
	}
}
