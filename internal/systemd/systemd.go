package systemd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// Booted tells whether systemd is the init system, as sd_booted(3) does.
func Booted() bool {
	_, err := os.Lstat("/run/systemd/system")
	return err == nil
}

// Manager is the host's systemd.
type Manager struct{}

// StartScope makes a scope, whose name ends with ".scope", in a slice, moves a process into it and waits until that is
// done. The slice is made where it is not there. The scope ends with its last process.
func (Manager) StartScope(ctx context.Context, name, slice string, pid int) error {
	err := run(ctx, func(conn *dbus.Conn, done chan<- string) (int, error) {
		return conn.StartTransientUnitContext(ctx, name, "replace", scope(name, slice, pid), done)
	})
	if err != nil {
		return fmt.Errorf("start %s in %s: %w", name, slice, err)
	}
	return nil
}

// scope are the properties of a transient scope.
func scope(name, slice string, pid int) []dbus.Property {
	return []dbus.Property{
		dbus.PropDescription("Pistis " + name),
		dbus.PropSlice(slice),
		dbus.PropPids(uint32(pid)),
		// Who is in the scope may make groups in it.
		{Name: "Delegate", Value: godbus.MakeVariant(true)},
		// It ends with the host's last processes, as containers do, and not before those.
		{Name: "DefaultDependencies", Value: godbus.MakeVariant(false)},
		// Its default is a share of what the host can have.
		{Name: "TasksMax", Value: godbus.MakeVariant(uint64(math.MaxUint64))},
		// One that has failed is forgotten too.
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
}

// Stop ends a unit, with all processes in it, and waits until it has gone. It is nil for one that is not there.
func (Manager) Stop(ctx context.Context, name string) error {
	err := run(ctx, func(conn *dbus.Conn, done chan<- string) (int, error) {
		return conn.StopUnitContext(ctx, name, "replace", done)
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return nil
}

// run starts a job and waits for its end.
func run(ctx context.Context, start func(conn *dbus.Conn, done chan<- string) (int, error)) error {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("systemd does not answer, neither on the system bus nor at its own socket: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if _, err := start(conn, done); err != nil {
		return classify(err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("its job ended as %q; systemd's journal says why: %w", result, errdefs.ErrUnavailable)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// classify gives systemd's errors a class.
func classify(err error) error {
	var said godbus.Error
	if !errors.As(err, &said) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	var class error = errdefs.ErrFailedPrecondition
	switch said.Name {
	case "org.freedesktop.systemd1.NoSuchUnit":
		class = errdefs.ErrNotFound
	case "org.freedesktop.systemd1.UnitExists":
		class = errdefs.ErrAlreadyExists
	}
	return fmt.Errorf("%w: %w", err, class)
}
