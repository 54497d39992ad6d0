package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// Moment in the life of a container of which plugins are told.
type Moment string

const (
	MomentCreated  Moment = "created"
	MomentStarting Moment = "starting" // a plugin can keep it from starting by an error
	MomentStarted  Moment = "started"
	MomentUpdated  Moment = "updated"
	MomentStopped  Moment = "stopped"
	MomentRemoved  Moment = "removed"
)

// plugins take part in the life of containers.
type plugins interface {
	// Adjust changes the spec of a container that is being created, and says whether it did.
	Adjust(ctx context.Context, pod sandbox.Status, c Status, spec *specs.Spec) (changed bool, err error)
	// Update changes new limits.
	Update(ctx context.Context, pod sandbox.Status, c Status, resources *specs.LinuxResources) (*specs.LinuxResources, error)
	Tell(ctx context.Context, moment Moment, pod sandbox.Status, c Status) error
	// Hold keeps new ones waiting while something is being made. It waits for one that is being let in.
	Hold(ctx context.Context) (release func(), err error)
}

// noPlugins is for who has none.
type noPlugins struct{}

func (noPlugins) Adjust(context.Context, sandbox.Status, Status, *specs.Spec) (bool, error) {
	return false, nil
}

func (noPlugins) Update(_ context.Context, _ sandbox.Status, _ Status, r *specs.LinuxResources) (*specs.LinuxResources, error) {
	return r, nil
}
func (noPlugins) Tell(context.Context, Moment, sandbox.Status, Status) error { return nil }
func (noPlugins) Hold(context.Context) (release func(), err error)           { return func() {}, nil }

// Spec of a container that was created, as it lies in its bundle.
func (m *Manager) Spec(id string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(m.bundle(id), specFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("spec of container %s: %w: %w", id, err, errdefs.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("spec of container %s: %w", id, err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("spec of container %s: %w: %w", id, err, errdefs.ErrDataLoss)
	}
	return &spec, nil
}

// adjust lets plugins change the spec; the result is checked as the original was.
func (m *Manager) adjust(ctx context.Context, c *container, pod sandbox.Status, spec *specs.Spec) error {
	changed, err := m.plugins.Adjust(ctx, pod, c.snapshot().status(), spec)
	if err != nil || !changed {
		return err
	}
	if pod.VM {
		if _, err := oci.ForGuest(spec); err != nil {
			return fmt.Errorf("after a plugin's adjustment: %w", err)
		}
	}
	c.writer.Lock() // the next save has it
	defer c.writer.Unlock()
	rec := c.snapshot()
	rec.Config.Resources = mergeResources(rec.Config.Resources, limitsOf(spec))
	c.set(rec)
	return nil
}

// limitsOf are the limits of a spec, without its devices.
func limitsOf(spec *specs.Spec) *specs.LinuxResources {
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return nil
	}
	limits := *spec.Linux.Resources
	limits.Devices = nil
	return &limits
}

// tellTimeout bounds what plugins take to hear of something, with the changes of other containers that they answer with.
const tellTimeout = 10 * time.Second

// tell plugins of something that they cannot change any more.
func (m *Manager) tell(ctx context.Context, moment Moment, rec record) {
	if m.plugins == (noPlugins{}) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	pod, err := m.sandboxes.Status(ctx, rec.Config.SandboxID)
	if errdefs.IsNotFound(err) {
		pod, err = sandbox.Status{ID: rec.Config.SandboxID}, nil
	}
	if err == nil {
		err = m.plugins.Tell(ctx, moment, pod, rec.status())
	}
	if err != nil {
		m.log.WarnContext(ctx, "plugins could not be told of a container", logfields.Container, rec.ID, logfields.Reason, string(moment), logfields.Error, err)
	}
}
