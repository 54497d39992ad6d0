package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

// engine is the managers in memory, with the promises that their interfaces make.
type engine struct {
	mu         sync.Mutex
	pods       map[string]*sandbox.Status
	containers map[string]*container.Status
	stats      map[string]task.Stats
	next       int
	// fail, where set, is what every call returns.
	fail error
	exec func(ctx context.Context, cmd []string, stdio task.Stdio) (int32, error)
}

func newEngine() *engine {
	return &engine{pods: map[string]*sandbox.Status{}, containers: map[string]*container.Status{}, stats: map[string]task.Stats{}}
}

func (e *engine) newID() string {
	e.next++
	return digest.FromString(fmt.Sprint(e.next)).Encoded()
}

func find[T any](m map[string]*T, id string) (*T, error) {
	var found *T
	for key, v := range m {
		if strings.HasPrefix(key, id) {
			if found != nil {
				return nil, fmt.Errorf("%q is ambiguous: %w", id, errdefs.ErrInvalidArgument)
			}
			found = v
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%q: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

// pods is the engine as the owner of sandboxes, ctrs as that of containers: both have a Stop of their own.
type (
	pods struct{ *engine }
	ctrs struct{ *engine }
)

func (e pods) Run(_ context.Context, cfg sandbox.Config) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail != nil {
		return "", e.fail
	}
	id := e.newID()
	e.pods[id] = &sandbox.Status{
		ID: id, Config: cfg, State: sandbox.Ready, Created: time.Now(), IPs: []string{"10.88.0.2", "fd00::2"}, NetNS: "/run/netns/x",
		Info: map[string]string{"hypervisor": "fake"},
	}
	return id, nil
}

func (e pods) Stop(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s, ok := e.pods[id]; ok {
		s.State = sandbox.NotReady
	}
	return e.fail
}

func (e pods) Remove(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pods, id)
	return e.fail
}

func (e pods) UpdateResources(_ context.Context, id string, overhead, resources *sandbox.Resources) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, err := find(e.pods, id)
	if err != nil {
		return err
	}
	if overhead != nil {
		s.Config.Overhead = *overhead
	}
	if resources != nil {
		s.Config.Resources = *resources
	}
	return e.fail
}

func (e pods) Describe(ctx context.Context, id string) (sandbox.Status, error) {
	return e.Status(ctx, id)
}

func (e pods) Status(_ context.Context, id string) (sandbox.Status, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, err := find(e.pods, id)
	if err != nil {
		return sandbox.Status{}, err
	}
	return *s, nil
}

func (e pods) List(context.Context) []sandbox.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []sandbox.Status
	for _, s := range e.pods {
		list = append(list, *s)
	}
	return list
}

func (e pods) Tasks(context.Context, string) (task.Service, error) {
	return nil, errdefs.ErrNotImplemented
}

func (e pods) Stats(ctx context.Context, id string, _ ...string) (task.Stats, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	stats, ok := e.stats[id]
	if !ok {
		return task.Stats{}, fmt.Errorf("pod %s is not ready: %w", id, errdefs.ErrFailedPrecondition)
	}
	return stats, ctx.Err()
}

func (e ctrs) Create(_ context.Context, cfg container.Config) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail != nil {
		return "", e.fail
	}
	id := e.newID()
	e.containers[id] = &container.Status{
		ID: id, Config: cfg, State: container.Created, ImageID: testImage(cfg.Image).ID.String(), Created: time.Now(),
		User: &task.User{UID: 7, GID: 8, AdditionalGIDs: []uint32{9}}, LogPath: "/logs/" + cfg.LogPath,
	}
	return id, nil
}

func (e ctrs) set(id string, change func(*container.Status)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.containers[id]
	if !ok {
		return fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	change(s)
	return e.fail
}

func (e ctrs) Start(_ context.Context, id string) error {
	return e.set(id, func(s *container.Status) { s.State, s.Started = container.Running, time.Now() })
}

func (e ctrs) Stop(_ context.Context, id string, grace time.Duration) error {
	return e.set(id, func(s *container.Status) {
		s.State, s.Finished, s.ExitCode, s.Reason = container.Exited, time.Now(), 143, "Error"
		s.Message = grace.String()
	})
}

func (e ctrs) Remove(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, id)
	return e.fail
}

func (e ctrs) Status(_ context.Context, id string) (container.Status, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, err := find(e.containers, id)
	if err != nil {
		return container.Status{}, err
	}
	return *s, nil
}

func (e ctrs) List(context.Context) []container.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []container.Status
	for _, s := range e.containers {
		list = append(list, *s)
	}
	return list
}

func (e ctrs) Update(_ context.Context, id string, r *specs.LinuxResources) error {
	return e.set(id, func(s *container.Status) { s.Config.Resources = r })
}

func (e ctrs) ReopenLog(_ context.Context, id string) error {
	return e.set(id, func(s *container.Status) { s.Message = "reopened" })
}

func (e ctrs) Checkpoint(_ context.Context, id, location string, notes map[string]any) error {
	text, err := json.Marshal(notes)
	if err != nil {
		return err
	}
	return e.set(id, func(s *container.Status) { s.Message = location + " " + string(text) })
}

func (e ctrs) ExecSync(ctx context.Context, _ string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if cmd[0] == "sleep" && timeout > 0 {
		return nil, nil, 0, fmt.Errorf("command: %w", context.DeadlineExceeded)
	}
	if cmd[0] == "panic" {
		panic("at the disco")
	}
	return []byte(strings.Join(cmd, " ")), []byte("oops"), 3, e.fail
}

func (e ctrs) Exec(ctx context.Context, _ string, cmd []string, _ bool, stdio task.Stdio, _ <-chan container.Size) (int32, error) {
	return e.exec(ctx, cmd, stdio)
}

func (e ctrs) Attach(ctx context.Context, _ string, _ bool, stdio task.Stdio, _ <-chan container.Size) error {
	_, err := e.exec(ctx, nil, stdio)
	return err
}

// store is the images in memory.
type store struct {
	mu     sync.Mutex
	images []image.Image
	auth   *image.Auth
	fail   error
}

func testImage(name string) image.Image {
	return image.Image{
		ID: digest.FromString(name), Tags: []string{name}, Digests: []string{strings.Split(name, ":")[0] + "@" + digest.FromString("m"+name).String()},
		Size: 1234, Config: ocispec.Image{Config: ocispec.ImageConfig{User: "nobody:users"}},
	}
}

func (s *store) Pull(_ context.Context, req image.PullRequest) (image.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return image.Image{}, s.fail
	}
	if req.Progress != nil {
		req.Progress(image.Progress{Ref: req.Ref, Status: image.StatusDone})
	}
	s.auth = req.Auth
	img := testImage(req.Ref)
	s.images = append(s.images, img)
	return img, nil
}

func (s *store) Get(_ context.Context, ref string) (image.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, img := range s.images {
		if img.ID.String() == ref || slices.Contains(img.Tags, ref) || slices.Contains(img.Digests, ref) {
			return img, nil
		}
	}
	return image.Image{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
}

func (s *store) List(context.Context) ([]image.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.images), s.fail
}

func (s *store) Remove(_ context.Context, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = slices.DeleteFunc(s.images, func(img image.Image) bool { return img.ID.String() == ref })
	return s.fail
}

func (s *store) FSInfo(context.Context) (image.FSInfo, error) {
	return image.FSInfo{Mountpoint: "/images", UsedBytes: 42, UsedInodes: 7, At: time.Now()}, s.fail
}

func (s *store) Import(_ context.Context, archive io.Reader) ([]image.Image, error) {
	data, err := io.ReadAll(archive)
	if err != nil {
		return nil, err
	}
	return []image.Image{testImage(fmt.Sprintf("imported:%d", len(data)))}, nil
}

func (s *store) Export(_ context.Context, archive io.Writer, refs ...string) error {
	for _, ref := range refs {
		if _, err := archive.Write([]byte(strings.Repeat(ref, 300_000))); err != nil {
			return err
		}
	}
	return s.fail
}
