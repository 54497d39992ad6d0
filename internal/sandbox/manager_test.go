package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/event"
)

func TestTransitions(t *testing.T) {
	states := []State{Creating, Ready, NotReady, Removing}
	ops := []operation{opReady, opFail, opExit, opStop, opRemove}
	want := map[State]string{ // the new state for each of ops, - for a refusal
		Creating: "ready not-ready - - removing",
		Ready:    "- - not-ready not-ready -",
		NotReady: "- - - not-ready removing",
		Removing: "- - - removing removing",
	}
	for _, state := range states {
		for i, op := range ops {
			next, err := transitions().Next(state, op)
			expected := strings.Fields(want[state])[i]
			if (err != nil) != (expected == "-") || err == nil && string(next) != expected {
				t.Errorf("%s in %s: got %s, %v, want %s", op, state, next, err, expected)
			}
			if err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%s in %s: %v is no failed precondition", op, state, err)
			}
		}
	}
}

func TestLife(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	ctx := t.Context()
	events, cancel := m.Events().Subscribe()
	defer cancel()
	id, err := m.Run(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := m.Status(ctx, id[:12])
	if err != nil || status.ID != id || status.State != Ready || !slices.Equal(status.IPs, []string{"10.0.0.2"}) || status.NetNS == "" || !status.VM || status.Info["hypervisor"] != "fake" {
		t.Fatalf("status %+v, %v", status, err)
	}
	if list := m.List(ctx); len(list) != 1 || list[0].ID != id {
		t.Errorf("list %v", list)
	}
	if _, err := m.Tasks(ctx, id); err != nil {
		t.Error(err)
	}
	if _, err := m.Counters(ctx, id); !errdefs.IsNotImplemented(err) {
		t.Errorf("counters of what counts nothing: %v", err)
	}
	for range 2 {
		if err := m.Stop(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if status, err := m.Status(ctx, id); err != nil || status.State != NotReady {
		t.Errorf("after stop: %+v, %v", status, err)
	}
	if left := w.left(); len(left) != 0 {
		t.Errorf("a stopped sandbox holds %v", left)
	}
	if _, err := m.Tasks(ctx, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("tasks of a stopped sandbox: %v", err)
	}
	for range 2 {
		if err := m.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Status(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("after remove: %v", err)
	}
	assertNothing(t, w, dir)
	for _, kind := range []event.Kind{event.Created, event.Started, event.Stopped, event.Deleted} {
		if e := <-events; e.Kind != kind || e.ID != id || e.SandboxID != id {
			t.Errorf("event %+v, want %s", e, kind)
		}
	}
}

func TestUpdateResources(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	ctx := t.Context()
	if err := m.UpdateResources(ctx, "none", nil, nil); !errdefs.IsNotFound(err) {
		t.Errorf("unknown: %v", err)
	}
	id, err := m.Run(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.UpdateResources(ctx, id, &Resources{MemoryLimit: 1}, &Resources{MemoryLimit: 10}); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdateResources(ctx, id, nil, &Resources{MemoryLimit: 20}); err != nil {
		t.Fatal(err)
	}
	w.fail("resize", fmt.Errorf("too large: %w", errdefs.ErrFailedPrecondition))
	if err := m.UpdateResources(ctx, id, nil, &Resources{MemoryLimit: 30}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("too large: %v", err)
	}
	if left := w.left(); !slices.Contains(left, "size of "+id+" 11") || !slices.Contains(left, "size of "+id+" 21") {
		t.Errorf("sizes: %v", left)
	}
	again := newManager(t, w, dir) // another daemon knows it too
	if err := again.Recover(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Manager{m, again} {
		if s, err := m.Status(ctx, id); err != nil || s.Config.Overhead.MemoryLimit != 1 || s.Config.Resources.MemoryLimit != 20 {
			t.Errorf("%+v, %v", s.Config, err)
		}
	}
	// What cannot be recorded is not done, and what is not done is not recorded.
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdateResources(ctx, id, nil, &Resources{MemoryLimit: 40}); err == nil || slices.Contains(w.left(), "size of "+id+" 41") {
		t.Errorf("no record: %v, %v", err, w.left())
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdateResources(ctx, id, nil, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stopped: %v", err)
	}
}

// TestStopCutsResize: who ends a pod does not wait for a guest that does not follow. Nobody is told of a size before it is so, not
// by a daemon either that starts after another has ended in the middle.
func TestStopCutsResize(t *testing.T) {
	for name, end := range map[string]func(*Manager, string) error{
		"stop":   func(m *Manager, id string) error { return m.Stop(t.Context(), id) },
		"remove": func(m *Manager, id string) error { return m.Remove(t.Context(), id) },
	} {
		w := newWorld()
		w.stuck = make(chan struct{})
		dir := t.TempDir()
		m := newManager(t, w, dir)
		id, err := m.Run(t.Context(), podConfig("a"))
		if err != nil {
			t.Fatal(err)
		}
		resized := make(chan error)
		go func() { resized <- m.UpdateResources(t.Context(), id, nil, &Resources{MemoryLimit: 20}) }()
		<-w.stuck
		again := newManager(t, w, dir)
		if err := again.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*Manager{m, again} {
			if s, err := m.Status(t.Context(), id); err != nil || s.Config.Resources.MemoryLimit == 20 {
				t.Errorf("%s: %+v, %v", name, s.Config.Resources, err)
			}
		}
		if err := end(m, id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-resized; !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "stopped") {
			t.Errorf("%s: the resize: %v", name, err)
		}
	}
}

// TestEmptyRecords: what a crash of the machine leaves of a record that nobody waited for is a file without content, beside an
// older record or alone. The one is the sandbox as it was, of the other everything is removed.
func TestEmptyRecords(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	first := newManager(t, w, dir)
	known, err := first.Run(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	lost, err := first.Run(t.Context(), podConfig("b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, lost+".json")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{known, lost} {
		if err := os.WriteFile(filepath.Join(dir, id+".soon"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := newManager(t, w, dir)
	if err := again.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := again.Status(t.Context(), known); err != nil || s.State != Ready {
		t.Errorf("beside an older record: %v, %v", s.State, err)
	}
	if s, err := again.Status(t.Context(), lost); !errdefs.IsNotFound(err) {
		t.Errorf("alone: %v, %v", s.State, err)
	}
	for _, left := range w.left() {
		if strings.Contains(left, lost) {
			t.Errorf("left of it: %s", left)
		}
	}
	if _, err := again.Run(t.Context(), podConfig("b")); err != nil {
		t.Errorf("its name: %v", err)
	}
}

// otherKinds are handlers that have become others.
type otherKinds struct{ kind string }

func (k otherKinds) Of(string) string { return k.kind }

func (k otherKinds) Check(id, handler, kind string) error {
	if kind == k.kind {
		return nil
	}
	return fmt.Errorf("pod %s was made by handler %s as %s: %w", id, handler, kind, errdefs.ErrFailedPrecondition)
}

// TestHandlerOfAnotherKind: nothing is touched of a sandbox that its handler cannot end any more.
func TestHandlerOfAnotherKind(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	first := newManager(t, w, dir)
	first.kinds = otherKinds{"microvm"}
	id, err := first.Run(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	before := w.left()
	again := newManager(t, w, dir)
	again.kinds = otherKinds{"oci"}
	if err := again.Recover(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), "microvm") {
		t.Errorf("another kind: %v", err)
	}
	if left := w.left(); !slices.Equal(left, before) {
		t.Errorf("left %v, want %v", left, before)
	}
	back := newManager(t, w, dir)
	back.kinds = otherKinds{"microvm"}
	if err := back.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := back.Status(t.Context(), id); err != nil || s.State != Ready {
		t.Errorf("set back: %v, %v", s.State, err)
	}
}

// TestKindOfAnOlderRecord: a sandbox that an older daemon has made is of the kind that it was first found running as.
func TestKindOfAnOlderRecord(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	id, err := newManager(t, w, dir).Run(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	found := newManager(t, w, dir)
	found.kinds = otherKinds{"microvm"}
	if err := found.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := newManager(t, w, dir)
	again.kinds = otherKinds{"oci"}
	if err := again.Recover(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), id) {
		t.Errorf("another kind: %v", err)
	}
}

func TestUnknownIDs(t *testing.T) {
	m := newManager(t, newWorld(), t.TempDir())
	if err := m.Stop(t.Context(), "none"); err != nil {
		t.Error(err)
	}
	if err := m.Remove(t.Context(), "none"); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"none", ""} {
		if _, err := m.Status(t.Context(), id); !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	cfg := podConfig("a")
	cfg.Handler = "nope"
	if _, err := m.Run(t.Context(), cfg); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "nope") {
		t.Errorf("unknown handler: %v", err)
	}
	cfg = podConfig("a")
	cfg.HostPID = true
	if _, err := m.Run(t.Context(), cfg); !errdefs.IsInvalidArgument(err) {
		t.Errorf("invalid config: %v", err)
	}
	assertNothing(t, w, dir)
}

func TestFailedRunLeavesNothing(t *testing.T) {
	for _, step := range []string{"netns create", "network setup", "launch files", "launch"} {
		t.Run(step, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			m := newManager(t, w, dir)
			w.fail(step, errFault)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, err := m.Run(ctx, podConfig("a")); !errors.Is(err, errFault) {
				t.Fatalf("got %v", err)
			}
			// What was made but not reported, as by a set-up that failed half way, is cleaned as well.
			assertNothing(t, w, dir)
			if list := m.List(ctx); len(list) != 0 {
				t.Errorf("listed: %v", list)
			}
			w.fail(step, nil)
			if _, err := m.Run(ctx, podConfig("a")); err != nil {
				t.Errorf("the name cannot be used again: %v", err)
			}
		})
	}
}

// TestNetworkBesideLaunch: a launch begins while the network is being set up, and one that fails does not wait for it.
func TestNetworkBesideLaunch(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	w.gate = make(chan struct{})
	m := newManager(t, w, dir)
	w.fail("launch files", errFault)
	if _, err := m.Run(t.Context(), podConfig("a")); !errors.Is(err, errFault) {
		t.Fatalf("got %v", err)
	}
	assertNothing(t, w, dir)
	w.fail("launch files", nil)
	launched := w.watch("launch files")
	ran := make(chan error, 1)
	var id string
	go func() {
		var err error
		id, err = m.Run(t.Context(), podConfig("a"))
		ran <- err
	}()
	<-launched
	close(w.gate)
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if status, err := m.Status(t.Context(), id); err != nil || !slices.Equal(status.IPs, []string{"10.0.0.2"}) {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestFailedUndoStaysVisible(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	w.fail("launch", errFault)
	undoFault := errors.New("plugin is away")
	w.fail("network teardown", undoFault)
	if _, err := m.Run(t.Context(), podConfig("a")); !errors.Is(err, errFault) || !errors.Is(err, undoFault) {
		t.Fatalf("got %v", err)
	}
	list := m.List(t.Context())
	if len(list) != 1 || list[0].State != NotReady || !strings.Contains(list[0].Reason, "fault") {
		t.Fatalf("list %+v", list)
	}
	if err := m.Remove(t.Context(), list[0].ID); !errors.Is(err, undoFault) {
		t.Errorf("remove while it still fails: %v", err)
	}
	w.fail("network teardown", nil)
	if err := m.Remove(t.Context(), list[0].ID); err != nil {
		t.Error(err)
	}
	assertNothing(t, w, dir)
}

// brokenDisk makes records impossible to save, and then the clean-up fail.
type brokenDisk struct {
	fakeLauncher
	dir string
}

func (b brokenDisk) Cleanup(context.Context, LaunchRequest) error {
	return errors.Join(errFault, os.RemoveAll(b.dir))
}

func TestFailedUndoStaysVisibleOnAFullDisk(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	m.launchers["vm"] = brokenDisk{fakeLauncher{w}, dir}
	w.fail("launch", errFault)
	if _, err := m.Run(t.Context(), podConfig("a")); !errors.Is(err, errFault) {
		t.Fatalf("got %v", err)
	}
	if list := m.List(t.Context()); len(list) != 1 || list[0].State != NotReady {
		t.Errorf("list %+v: what holds a name must be seen", list)
	}
}

func TestEventsOfAnInstanceThatEndsAtOnce(t *testing.T) {
	w := newWorld()
	m := newManager(t, w, t.TempDir())
	m.launchers["vm"] = stillborn{fakeLauncher{w}}
	events, cancel := m.Events().Subscribe()
	defer cancel()
	for range 20 {
		id, err := m.Run(t.Context(), podConfig("a"))
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []event.Kind{event.Created, event.Started, event.Stopped} {
			if e := <-events; e.Kind != kind {
				t.Fatalf("event %+v, want %s", e, kind)
			}
		}
		if err := m.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if e := <-events; e.Kind != event.Deleted {
			t.Fatalf("event %+v after the removal", e)
		}
	}
}

// stillborn instances have ended when their launch returns.
type stillborn struct{ fakeLauncher }

func (s stillborn) Launch(ctx context.Context, req LaunchRequest) (Instance, error) {
	instance, err := s.fakeLauncher.Launch(ctx, req)
	if err == nil {
		instance.(*fakeInstance).end("crashed")
	}
	return instance, err
}

func TestStopFailuresAreRetryable(t *testing.T) {
	for _, step := range []string{"cleanup", "network teardown", "netns remove"} {
		for kind, host := range map[string]bool{"vm": false, "host": true} {
			t.Run(step+" "+kind, func(t *testing.T) {
				w, dir := newWorld(), t.TempDir()
				w.host = host
				m := newManager(t, w, dir)
				id, err := m.Run(t.Context(), podConfig("a"))
				if err != nil {
					t.Fatal(err)
				}
				w.fail(step, errFault)
				if err := m.Stop(t.Context(), id); !errors.Is(err, errFault) {
					t.Errorf("stop: %v", err)
				}
				if status, err := m.Status(t.Context(), id); err != nil || status.State != NotReady {
					t.Errorf("%+v, %v", status, err)
				}
				w.fail(step, nil)
				if err := m.Remove(t.Context(), id); err != nil {
					t.Error(err)
				}
				assertNothing(t, w, dir)
			})
		}
	}
}

func TestHungGuestCanBeStopped(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	id, err := m.Run(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	w.fail("containers stop", context.DeadlineExceeded)
	w.fail("instance stop", context.DeadlineExceeded)
	if err := m.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	assertNothing(t, w, dir)
}

func TestConcurrentRunsOfOneName(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	const n = 16
	var group sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		group.Go(func() { _, errs[i] = m.Run(t.Context(), podConfig("a")) })
	}
	group.Wait()
	list := m.List(t.Context())
	if len(list) != 1 {
		t.Fatalf("%d sandboxes", len(list))
	}
	started := 0
	for _, err := range errs {
		switch {
		case err == nil:
			started++
		case !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), list[0].ID):
			t.Errorf("got %v", err)
		}
	}
	if started != 1 {
		t.Errorf("%d runs succeeded", started)
	}
}

func TestConcurrentStopAndRemove(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	for range 10 {
		id, err := m.Run(t.Context(), podConfig("a"))
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				call := m.Stop
				if i%2 == 0 {
					call = m.Remove
				}
				if err := call(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
		group.Go(func() { w.instance(id).end("crash") })
		group.Wait()
		assertNothing(t, w, dir)
	}
}

func (w *world) instance(id string) *fakeInstance {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.instances[id]
}

func TestInstanceEndsByItself(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	id, err := m.Run(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	w.instance(id).end("the virtual machine was killed")
	reason, err := m.Ended(t.Context(), id)
	if err != nil || reason != "the virtual machine was killed" {
		t.Errorf("got %q, %v", reason, err)
	}
	if status, _ := m.Status(t.Context(), id); status.State != NotReady || status.Reason != reason {
		t.Errorf("status %+v", status)
	}
	if _, err := m.Tasks(t.Context(), id); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), reason) {
		t.Errorf("tasks: %v", err)
	}
	if err := m.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	assertNothing(t, w, dir)
	if reason, err := m.Ended(t.Context(), id); err != nil || reason != "" {
		t.Errorf("of a removed one: %q, %v", reason, err)
	}
}

// worldPlugins note in the world what they are told.
type worldPlugins struct {
	noPlugins
	*world
}

func (p worldPlugins) TellPod(_ context.Context, moment Moment, _ Status) error {
	return p.do("plugins "+string(moment), func() {})
}

func (p worldPlugins) UpdatePod(context.Context, Status, *Resources, *Resources) error {
	return p.do("plugins update", func() {})
}

// TestPluginsLearnOfAnEnd once, whether a pod was stopped or ended by itself.
func TestPluginsLearnOfAnEnd(t *testing.T) {
	for _, itself := range []bool{false, true} {
		w := newWorld()
		m := newManager(t, w, t.TempDir())
		m.plugins = worldPlugins{world: w}
		id, err := m.Run(t.Context(), podConfig("a"))
		if err != nil {
			t.Fatal(err)
		}
		if itself {
			cleaned := w.watch("cleanup")
			w.instance(id).end("the virtual machine was killed")
			<-cleaned
		}
		if err := m.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		var told []string
		for _, call := range w.calls {
			if moment, ok := strings.CutPrefix(call, "plugins "); ok {
				told = append(told, moment)
			}
		}
		if want := []string{"started", "stopped", "removed"}; !slices.Equal(told, want) {
			t.Errorf("ended by itself: %t: told %v, want %v", itself, told, want)
		}
	}
}

// TestPluginRefusesAPod: others that were asked before it learn that nothing came of the pod.
func TestPluginRefusesAPod(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	m.plugins = worldPlugins{world: w}
	w.fail("plugins started", errFault)
	if _, err := m.Run(t.Context(), podConfig("a")); !errors.Is(err, errFault) {
		t.Errorf("got %v", err)
	}
	if last := w.calls[len(w.calls)-2:]; !slices.Equal(last, []string{"plugins stopped", "plugins removed"}) {
		t.Errorf("at last: %v", last)
	}
	assertNothing(t, w, dir)
}

func TestWaitingForAClaimEndsWithTheContext(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	id, err := m.Run(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	sb, _ := m.find(id)
	release, err := sb.claim.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Stop(ctx, id); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	release()
}

func TestRecover(t *testing.T) {
	type crash struct {
		name string
		// change is what happens to record and world while no daemon runs.
		change func(r *record, w *world)
		want   State // empty: removed
		reason string
	}
	for _, c := range []crash{
		{"nothing happened", func(*record, *world) {}, Ready, ""},
		{"instance gone", func(r *record, w *world) { delete(w.have, "instance "+r.ID) }, NotReady, "no such instance"},
		{"handler gone", func(r *record, w *world) { r.Config.Handler = "gone" }, NotReady, "not configured"},
		{"half created, launched", func(r *record, w *world) { r.State = Creating }, "", ""},
		{"half created, launching", func(r *record, w *world) {
			r.State = Creating
			delete(w.have, "instance "+r.ID)
		}, "", ""},
		{"half created, network", func(r *record, w *world) {
			r.State, r.Launched, r.LaunchState = Creating, false, nil
			delete(w.have, "instance "+r.ID)
			delete(w.have, "files "+r.ID)
		}, "", ""},
		{"half created, namespace not recorded", func(r *record, w *world) {
			*r = record{ID: r.ID, Config: r.Config, State: Creating}
			w.have = map[string]bool{"netns " + r.ID: true}
		}, "", ""},
		{"half stopped", func(r *record, w *world) { r.State = NotReady }, NotReady, ""},
		{"half removed", func(r *record, w *world) { r.State = Removing }, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			first := newManager(t, w, dir)
			id, err := first.Run(t.Context(), podConfig("a"))
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			sb, _ := first.find(id)
			rec, _ := sb.snapshot()
			c.change(&rec, w)
			if err := first.records.Put(id, rec); err != nil {
				t.Fatal(err)
			}

			m := newManager(t, w, dir)
			if err := m.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			status, err := m.Status(t.Context(), id)
			if c.want == "" {
				if !errdefs.IsNotFound(err) {
					t.Errorf("still there: %+v, %v", status, err)
				}
				assertNothing(t, w, dir)
				return
			}
			if err != nil || status.State != c.want || !strings.Contains(status.Reason, c.reason) {
				t.Errorf("got %+v, %v", status, err)
			}
			if _, err := m.Run(t.Context(), rec.Config); err == nil || c.name != "handler gone" && !errdefs.IsAlreadyExists(err) {
				t.Errorf("its name is free: %v", err)
			}
			if c.name == "handler gone" {
				if err := m.Remove(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("remove without its handler: %v", err)
				}
				return
			}
			if c.want == Ready {
				w.instance(id).end("later") // it is watched
				if reason, err := m.Ended(t.Context(), id); err != nil || reason != "later" {
					t.Errorf("got %q, %v", reason, err)
				}
			}
			if err := m.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
			assertNothing(t, w, dir)
		})
	}
}

func TestRecoverSweepsWhatHasNoRecord(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	w.have["netns lost"], w.have["files lost"] = true, true
	if err := os.WriteFile(filepath.Join(dir, "damaged.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newManager(t, w, dir)
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := w.left(); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}
