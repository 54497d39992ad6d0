// Package failpoint makes a process fail at named places, for crash tests.
//
// Points are off unless the environment variable PISTIS_FAILPOINTS names them when the process starts, as
// "sandbox.launched=kill9,container.created=error". A point that is off costs one map lookup in an empty map.
// The parsed table is read-only. The package imports nothing of ours but the keys of log fields.
package failpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/logfields"
)

// Env is the variable that switches points on.
const Env = "PISTIS_FAILPOINTS"

// ErrInjected is what a point in mode error returns.
var ErrInjected = errors.New("injected failure")

type mode string

const (
	modeError mode = "error" // return ErrInjected
	modePanic mode = "panic"
	modeKill  mode = "kill9" // the process ends itself with SIGKILL
	modePause mode = "pause" // block until the context ends, so that a test can act in the meantime
)

var enabled = sync.OnceValues(func() (map[string]mode, error) { return parse(os.Getenv(Env)) })

// Check reports a malformed PISTIS_FAILPOINTS; a program calls it first, so that a misspelt test cannot pass.
func Check() error {
	_, err := enabled()
	return err
}

// Hit does what the environment says for the named point: nothing, nearly always.
func Hit(ctx context.Context, name string) error {
	points, _ := enabled()
	m, on := points[name]
	if !on {
		return nil
	}
	return fire(ctx, name, m)
}

func fire(ctx context.Context, name string, m mode) error {
	slog.WarnContext(ctx, "failpoint reached", logfields.Point, name, logfields.Mode, string(m))
	switch m {
	case modePanic:
		panic("failpoint " + name)
	case modeKill:
		if err := unix.Kill(unix.Getpid(), unix.SIGKILL); err != nil {
			return fmt.Errorf("failpoint %s: kill this process: %w", name, err)
		}
		select {} // the signal is on its way
	case modePause:
		<-ctx.Done()
		return fmt.Errorf("failpoint %s: %w", name, context.Cause(ctx))
	default:
		return fmt.Errorf("failpoint %s: %w", name, ErrInjected)
	}
}

func parse(s string) (map[string]mode, error) {
	points := map[string]mode{}
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, value, ok := strings.Cut(item, "=")
		m := mode(value)
		known := m == modeError || m == modePanic || m == modeKill || m == modePause
		if !ok || name == "" || !known {
			return nil, fmt.Errorf("%s: %q is not name=error, name=panic, name=kill9 or name=pause", Env, item)
		}
		points[name] = m
	}
	return points, nil
}
