package daemon

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/cri"
	"github.com/pistis-run/pistis/internal/guestimage"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/snapshot"
)

// handlers are the runtime handlers of the configuration with what runs their pods.
type handlers struct {
	cfg       config.Config
	guest     guestFiles
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
	_, err := h.cfg.VM.FindQEMU()
	return err
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

func openHandlers(cfg config.Config, p paths, layers *snapshot.Layers, log *slog.Logger) (*handlers, error) {
	h := &handlers{
		cfg: cfg, launchers: map[string]sandbox.Launcher{},
		guest: guestFiles{kernel: cfg.VM.Kernel, initrd: cfg.VM.Initrd, built: p.guest()},
	}
	_, _ = layers, log
	return h, nil
}
