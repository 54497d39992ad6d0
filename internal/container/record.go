package container

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/lifecycle"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/task"
)

const recordVersion = 1

// record is what is kept on disk of a container.
type record struct {
	ID string
	// Name is unique on the node.
	Name       string
	Config     Config
	State      State
	ImageID    string
	LogPath    string      `json:",omitempty"` // absolute
	StopSignal unix.Signal // resolved from config and image
	User       *task.User  `json:",omitempty"`
	PID        uint32      `json:",omitempty"`

	Created, Started, Finished time.Time
	ExitCode                   int32
	Reason, Message            string `json:",omitempty"`
}

func (r record) status() Status {
	return Status{
		ID: r.ID, Config: r.Config, State: r.State, ImageID: r.ImageID, User: r.User, PID: r.PID,
		Created: r.Created, Started: r.Started, Finished: r.Finished,
		ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message, LogPath: r.LogPath, StopSignal: r.StopSignal,
	}
}

// alive reports whether a process may exist that has to end before the container can be removed.
func (r record) alive() bool { return r.State == Starting || r.State == Running || r.State == Unknown }

// container is one container in memory.
type container struct {
	// claim is held while Create, Start, Remove or a change of limits runs.
	claim *lifecycle.Claim
	// writer orders changes of the record: memory and disk change together.
	writer sync.Mutex
	// checkpointing is held while a checkpoint is made, which may take long: nobody waits for it.
	checkpointing sync.Mutex

	mu      sync.Mutex // guards what follows; held for moments
	rec     record
	removed bool
	exited  chan struct{} // closed once the container is Exited
}

func newContainer(rec record) *container {
	c := &container{claim: lifecycle.NewClaim(), rec: rec, exited: make(chan struct{})}
	if rec.State == Exited || rec.State == Removing {
		close(c.exited)
	}
	return c
}

// acquire waits for the claim; the caller calls release. NotFound when the container was removed meanwhile.
func (c *container) acquire(ctx context.Context) (release func(), err error) {
	release, err = c.claim.Acquire(ctx)
	return c.unlessRemoved(release, err)
}

// errEnding is what an operation is told that gives way.
var errEnding = fmt.Errorf("the container is being stopped: %w", errdefs.ErrAborted)

// acquireToEnd is acquire for who ends the container.
func (c *container) acquireToEnd(ctx context.Context) (release func(), err error) {
	release, err = c.claim.AcquireToEnd(ctx, errEnding)
	return c.unlessRemoved(release, err)
}

// acquireYielding is acquire for what gives way then: its context ends.
func (c *container) acquireYielding(ctx context.Context) (yielding context.Context, release func(), err error) {
	yielding, release, err = c.claim.AcquireYielding(ctx)
	release, err = c.unlessRemoved(release, err)
	return yielding, release, err
}

func (c *container) unlessRemoved(release func(), err error) (func(), error) {
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		release()
		return nil, errdefs.ErrNotFound
	}
	return release, nil
}

func (c *container) snapshot() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

func (c *container) set(rec record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec = rec
}

// update changes the record without its state, on disk and then in memory.
func (m *Manager) update(c *container, change func(*record)) error {
	c.writer.Lock()
	defer c.writer.Unlock()
	rec := c.snapshot()
	change(&rec)
	if err := m.records.PutSoon(rec.ID, rec); err != nil {
		return err
	}
	c.set(rec)
	return nil
}

// note is update for what is so whether it can be saved or not.
func (m *Manager) note(c *container, change func(*record)) {
	c.writer.Lock()
	defer c.writer.Unlock()
	rec := c.snapshot()
	change(&rec)
	if err := m.records.PutSoon(rec.ID, rec); err != nil {
		m.log.Warn("container record could not be saved; its last state is older", logfields.Container, rec.ID, logfields.Error, err)
	}
	c.set(rec)
}

// move changes the state by the table. An exit is a fact that a full disk cannot undo: memory changes even where the
// record cannot be saved. That a container was created, before it may start, and how it ended wait for the disk; what comes
// between and after is lost with the machine's crash anyway.
func (m *Manager) move(c *container, op operation, change func(*record)) error {
	c.writer.Lock()
	defer c.writer.Unlock()
	rec := c.snapshot()
	next, err := transitions().Next(rec.State, op)
	if err != nil {
		return fmt.Errorf("container %s: %w", rec.ID, err)
	}
	rec.State = next
	if change != nil {
		change(&rec)
	}
	save := m.records.PutSoon
	if op == opCreated || op == opExit {
		save = m.records.Put
	}
	if err := save(rec.ID, rec); err != nil {
		if op != opExit {
			return err
		}
		m.log.Error("exit of a container could not be saved", logfields.Container, rec.ID, logfields.Error, err)
	}
	c.set(rec)
	if op == opExit {
		m.publish(event.Stopped, rec) // before who waits for the exit can go on, so that events keep their order
		close(c.exited)
	}
	return nil
}

// find returns the container with this id or with the only id that begins with it.
func (m *Manager) find(id string) (*container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.containers[id]; ok {
		return c, nil
	}
	var found *container
	for full, c := range m.containers {
		if id == "" || !strings.HasPrefix(full, id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("container %q: several ids begin so: %w", id, errdefs.ErrInvalidArgument)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

func (m *Manager) add(c *container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.containers[c.rec.ID] = c
}

// forget removes the record, the name and the container itself.
func (m *Manager) forget(c *container) error {
	rec := c.snapshot()
	if err := m.records.Delete(rec.ID); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.containers, rec.ID)
	m.mu.Unlock()
	c.mu.Lock()
	c.removed = true
	c.mu.Unlock()
	m.names.Release(rec.Name, rec.ID)
	return nil
}

// of returns the containers of a sandbox.
func (m *Manager) of(sandboxID string) []*container {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*container
	for _, c := range m.containers {
		if c.rec.Config.SandboxID == sandboxID { // never changes
			list = append(list, c)
		}
	}
	return list
}
