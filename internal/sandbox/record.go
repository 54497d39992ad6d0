package sandbox

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/lifecycle"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network"
)

const recordVersion = 1

// record is what is kept on disk of a sandbox.
type record struct {
	ID      string
	Config  Config
	State   State
	Created time.Time
	Reason  string `json:",omitempty"`
	// Kind is what the runtime handler was when it made the sandbox; empty in records of older versions.
	Kind string `json:",omitempty"`
	// NetNS is set before the namespace is made, and empty again when it was removed.
	NetNS string `json:",omitempty"`
	// Networked: a set-up of the network may have begun and has not been undone.
	Networked bool     `json:",omitempty"`
	IPs       []string `json:",omitempty"`
	// Launched: a launch may have begun and has not been cleaned up. LaunchState is the launcher's own.
	Launched    bool            `json:",omitempty"`
	LaunchState json.RawMessage `json:",omitempty"`
}

// name is what must be unique on the node.
func (c Config) name() string {
	return strings.Join([]string{c.Name, c.Namespace, c.UID, fmt.Sprint(c.Attempt)}, "_")
}

func (r record) networkPod() network.Pod {
	c := r.Config
	pod := network.Pod{
		Handler: r.Config.Handler,
		ID:      r.ID, Namespace: c.Namespace, Name: c.Name, UID: c.UID,
		NetNS:        r.NetNS,
		Annotations:  c.Annotations,
		CgroupParent: c.CgroupParent,
	}
	if c.DNS != nil {
		pod.DNSServers, pod.DNSSearches, pod.DNSOptions = c.DNS.Servers, c.DNS.Searches, c.DNS.Options
	}
	for _, p := range c.Ports {
		pod.Ports = append(pod.Ports, network.Port{Protocol: p.Protocol, HostPort: p.HostPort, ContainerPort: p.ContainerPort, HostIP: p.HostIP})
	}
	return pod
}

func (r record) launchRequest() LaunchRequest {
	return LaunchRequest{ID: r.ID, Config: r.Config, NetNS: r.NetNS, State: r.LaunchState}
}

// sandbox is one sandbox in memory.
type sandbox struct {
	// claim is held while an operation runs.
	claim *lifecycle.Claim
	// writer orders changes of the record: memory and disk change together.
	writer sync.Mutex

	mu       sync.Mutex // guards what follows; held for moments
	rec      record
	instance Instance
	ended    chan struct{} // closed when the sandbox is no longer Ready
	removed  bool
}

func newSandbox(rec record) *sandbox {
	sb := &sandbox{claim: lifecycle.NewClaim(), rec: rec, ended: make(chan struct{})}
	if rec.State == NotReady || rec.State == Removing {
		close(sb.ended)
	}
	return sb
}

func (sb *sandbox) snapshot() (record, Instance) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.rec, sb.instance
}

func (sb *sandbox) setInstance(i Instance) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.instance = i
}

// update changes the record by a function, on disk and then in memory.
func (m *Manager) update(sb *sandbox, change func(*record)) error {
	sb.writer.Lock()
	defer sb.writer.Unlock()
	rec, _ := sb.snapshot()
	change(&rec)
	if err := m.records.PutSoon(rec.ID, rec); err != nil {
		return err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.rec = rec
	return nil
}

// note records what is so whether it can be saved or not, as that something was freed. Where it cannot, as on a full disk, memory
// changes all the same: who reads the old record only does it again.
func (m *Manager) note(sb *sandbox, change func(*record)) {
	sb.writer.Lock()
	defer sb.writer.Unlock()
	rec, _ := sb.snapshot()
	change(&rec)
	if err := m.records.PutSoon(rec.ID, rec); err != nil {
		m.log.Warn("sandbox record could not be saved; its last state is older", logfields.Sandbox, rec.ID, logfields.Error, err)
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.rec = rec
}

// move changes the state by the table. It reports, and tells the world, whether the sandbox stopped being Ready by this. Leaving Ready, and a
// start that could not be undone, are facts that a full disk cannot undo: memory changes even where the record cannot be saved.
// Only that a sandbox has become Ready waits for the disk: a crash of the machine ends the others anyway.
func (m *Manager) move(sb *sandbox, op operation, change func(*record)) (left bool, err error) {
	sb.writer.Lock()
	defer sb.writer.Unlock()
	rec, _ := sb.snapshot()
	next, err := transitions().Next(rec.State, op)
	if err != nil {
		return false, fmt.Errorf("sandbox %s: %w", rec.ID, err)
	}
	left = rec.State == Ready && next != Ready
	rec.State = next
	if change != nil {
		change(&rec)
	}
	save := m.records.PutSoon
	if op == opReady {
		save = m.records.Put
	}
	if err := save(rec.ID, rec); err != nil {
		if !left && op != opFail {
			return false, err
		}
		m.log.Error("sandbox record could not be saved; its last state is older", logfields.Sandbox, rec.ID, logfields.Error, err)
	}
	sb.mu.Lock()
	sb.rec = rec
	sb.mu.Unlock()
	if left {
		m.publish(event.Stopped, rec.ID) // before who waits for the end can go on, so that events keep their order
	}
	if next == NotReady || next == Removing {
		select {
		case <-sb.ended:
		default:
			close(sb.ended)
		}
	}
	return left, nil
}

// find returns the sandbox with this id or with the only id that begins with it.
func (m *Manager) find(id string) (*sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if sb, ok := m.sandboxes[id]; ok {
		return sb, nil
	}
	var found *sandbox
	for full, sb := range m.sandboxes {
		if id == "" || !strings.HasPrefix(full, id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("sandbox %q: several ids begin so: %w", id, errdefs.ErrInvalidArgument)
		}
		found = sb
	}
	if found == nil {
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

func (m *Manager) add(sb *sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sandboxes[sb.rec.ID] = sb
}

// forget removes record, name and the sandbox itself.
func (m *Manager) forget(sb *sandbox) error {
	rec, _ := sb.snapshot()
	if err := m.records.Delete(rec.ID); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.sandboxes, rec.ID)
	m.mu.Unlock()
	sb.mu.Lock()
	sb.removed = true
	sb.mu.Unlock()
	m.names.Release(rec.Config.name(), rec.ID)
	return nil
}

func (m *Manager) netnsPath(id string) string { return filepath.Join(m.netnsDir, id) }
