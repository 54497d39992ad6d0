package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pistis-run/pistis/internal/config"
)

// checkTimeout bounds one check.
const checkTimeout = 2 * time.Minute

// Level says how bad a finding is.
type Level string

const (
	// LevelOK: all is well.
	LevelOK Level = "ok"
	// LevelWarn: it works, but not as well as it could.
	LevelWarn Level = "warn"
	// LevelFail: pods cannot be run.
	LevelFail Level = "fail"
)

// Check is one finding.
type Check struct {
	Name string `json:"name"`
	// OK: the level is not LevelFail.
	OK    bool  `json:"ok"`
	Level Level `json:"level"`
	// Detail is what was found, Advice what to do about it; empty where nothing is to be done.
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

// Options of Run.
type Options struct {
	Config config.Config
}

// finding is what a check returns.
type finding struct {
	level          Level
	detail, advice string
}

func ok(format string, args ...any) finding {
	return finding{level: LevelOK, detail: fmt.Sprintf(format, args...)}
}

func warn(advice, format string, args ...any) finding {
	return finding{level: LevelWarn, detail: fmt.Sprintf(format, args...), advice: advice}
}

func fail(advice, format string, args ...any) finding {
	return finding{level: LevelFail, detail: fmt.Sprintf(format, args...), advice: advice}
}

// Run does all checks, one after another.
func Run(ctx context.Context, o Options) []Check {
	h := host{Options: o, proc: "/proc", dev: "/dev"}
	h.probe = once(h.probeKVM)
	checks := []struct {
		name string
		run  func(context.Context) finding
	}{
		{"privileges", h.privileges},
		{"configuration", h.configuration},
		{"runtimes", h.runtimes},
		{"monitor", h.monitor},
		{"shim", h.shim},
		{"qemu", h.qemu},
		{"kvm", h.kvm},
		{"firecracker", h.firecracker},
		{"cloud-hypervisor", h.cloudHypervisor},
		{"hypervisor", h.choice},
		{"guest", h.guest},
		{"transport", h.transport},
		{"tun", h.tun},
		{"network", h.network},
		{"nftables", h.nftables},
		{"cgroups", h.cgroups},
		{"security modules", h.securityModules},
		{"mkfs.ext4", h.mkfs},
		{"disk space", h.diskSpace},
		{"memory", h.memory},
	}
	var results []Check
	for _, c := range checks {
		f := bounded(ctx, c.run)
		results = append(results, Check{Name: c.name, OK: f.level != LevelFail, Level: f.level, Detail: f.detail, Advice: f.advice})
	}
	return results
}

// once remembers the first answer: more than one check asks.
func once(probe func(context.Context) (bool, string, error)) func(context.Context) (bool, string, error) {
	asked := false
	var usable bool
	var reason string
	var err error
	return func(ctx context.Context) (bool, string, error) {
		if !asked {
			usable, reason, err = probe(ctx)
			asked = true
		}
		return usable, reason, err
	}
}

func bounded(ctx context.Context, run func(context.Context) finding) finding {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	f := run(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fail("see what hangs: run it by hand", "no answer within %s: %s", checkTimeout, f.detail)
	}
	return f
}
