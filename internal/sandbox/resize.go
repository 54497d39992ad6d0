package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/logfields"
)

// resizer is an instance whose size follows from the pod's resources. One that does not implement it has no size.
type resizer interface {
	// Resize makes the running instance hold what cfg says, or refuses. FailedPrecondition where it cannot be done while
	// it runs.
	Resize(ctx context.Context, cfg Config) error
}

// refresher is an instance that asks anew what Info tells of it.
type refresher interface {
	Refresh(ctx context.Context) error
}

// describeTimeout bounds the wait for an instance that is asked what it is.
const describeTimeout = 2 * time.Second

// Describe is Status with what the instance says of itself now. One that does not answer leaves what it said before.
func (m *Manager) Describe(ctx context.Context, id string) (Status, error) {
	sb, err := m.find(id)
	if err != nil {
		return Status{}, err
	}
	_, instance := sb.snapshot()
	if fresh, ok := instance.(refresher); ok {
		asking, cancel := context.WithTimeout(ctx, describeTimeout)
		defer cancel()
		if err := fresh.Refresh(asking); err != nil {
			m.log.DebugContext(ctx, "what is told of a sandbox may be old", logfields.Sandbox, id, logfields.Error, err)
		}
	}
	return m.Status(ctx, id)
}

// UpdateResources changes what a Ready sandbox's containers, and the runtime beside them, may use together; nil leaves it as
// it is. Limits are the containers', and the pod's cgroup is its maker's: only the size of an instance depends on it.
func (m *Manager) UpdateResources(ctx context.Context, id string, overhead, resources *Resources) error {
	sb, err := m.find(id)
	if err != nil {
		return err
	}
	// A guest may take its time.
	ctx, release, err := sb.claim.AcquireYielding(ctx)
	if err != nil {
		return err
	}
	defer release()
	rec, instance := sb.snapshot()
	if rec.State != Ready {
		return fmt.Errorf("sandbox %s is %s: %w", rec.ID, rec.State, errdefs.ErrFailedPrecondition)
	}
	status, _ := m.status(sb)
	if err := m.plugins.UpdatePod(ctx, status, overhead, resources); err != nil {
		return err
	}
	set := func(cfg *Config) {
		if overhead != nil {
			cfg.Overhead = *overhead
		}
		if resources != nil {
			cfg.Resources = *resources
		}
	}
	// The record is written before as well, as it is: where none can be written nothing is done. The new resources are in it when
	// the instance holds them, so that those which a daemon did not come to are not told by the next.
	if err := m.update(sb, func(*record) {}); err != nil {
		return err
	}
	if sized, ok := instance.(resizer); ok {
		cfg := rec.Config
		set(&cfg)
		if err := sized.Resize(ctx, cfg); err != nil {
			return err
		}
	}
	m.note(sb, func(r *record) { set(&r.Config) })
	m.tell(ctx, Updated, sb)
	return nil
}
