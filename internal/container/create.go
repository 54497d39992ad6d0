package container

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
)

// specFile is where a bundle has its spec.
const specFile = "config.json"

// Create makes a container in a Ready sandbox and returns its id. AlreadyExists names the container that has the
// same name and attempt in the pod. After an error nothing is left and the name is free.
func (m *Manager) Create(ctx context.Context, cfg Config) (id string, err error) {
	pod, err := m.sandboxes.Status(ctx, cfg.SandboxID)
	if err != nil {
		return "", err
	}
	cfg.SandboxID = pod.ID
	tasks, err := m.sandboxes.Tasks(ctx, pod.ID)
	if err != nil {
		return "", err
	}
	id = newID(32)
	c := newContainer(record{ID: id, Name: fullName(cfg, pod), Config: cfg, State: Creating, Created: time.Now()})
	release, err := c.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	ctx, end := span.Start(ctx, "container create", span.Container.String(id), span.Sandbox.String(pod.ID), span.Image.String(cfg.Image))
	defer func() { end(err) }()
	unhold, err := m.plugins.Hold(ctx)
	if err != nil {
		return "", err
	}
	defer unhold()
	if err := m.create(ctx, c, pod, tasks); err != nil {
		return "", err
	}
	m.publish(event.Created, c.snapshot())
	m.tell(ctx, MomentCreated, c.snapshot())
	return id, nil
}

func fullName(cfg Config, pod sandbox.Status) string {
	return strings.Join([]string{cfg.Name, pod.Config.Name, pod.Config.Namespace, pod.Config.UID, fmt.Sprint(cfg.Attempt)}, "_")
}

// create takes a container from its name to Created, or leaves nothing.
func (m *Manager) create(ctx context.Context, c *container, pod sandbox.Status, tasks task.Service) (err error) {
	rec := c.snapshot()
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	if err := m.names.Reserve(rec.Name, rec.ID); err != nil {
		return err
	}
	undo.Add("forget container", func(context.Context) error { return m.forget(c) })
	m.add(c)
	if err := m.update(c, func(*record) {}); err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "container.reserved"); err != nil {
		return err
	}
	img, spec, err := m.prepare(ctx, c, pod)
	if err != nil {
		return err
	}
	vols, err := m.findVolumes(ctx, rec)
	if err != nil {
		return err
	}
	undo.Add("end use of images", func(ctx context.Context) error { return m.images.Unuse(ctx, rec.ID) })
	layers, err := m.useImages(ctx, rec.ID, pod, img, vols)
	if err != nil {
		return err
	}
	undo.Add("unmount images", func(ctx context.Context) error { return m.removeVolumes(ctx, rec) })
	if err := m.mountVolumes(ctx, vols, pod, spec); err != nil {
		return err
	}
	undo.Add("remove bundle", func(context.Context) error { return os.RemoveAll(m.bundle(rec.ID)) })
	// Plugins that were asked may have set something aside for it.
	undo.Add("tell plugins", func(ctx context.Context) error {
		m.tell(ctx, MomentStopped, c.snapshot())
		m.tell(ctx, MomentRemoved, c.snapshot())
		return nil
	})
	if err := m.adjust(ctx, c, pod, spec); err != nil {
		return err
	}
	if err := m.writeBundle(rec.ID, spec); err != nil {
		return err
	}
	rec = c.snapshot()
	if err := makeLogDir(rec.LogPath); err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "container.bundle"); err != nil {
		return err
	}
	req := createRequest(rec, m.bundle(rec.ID), spec, layers, img)
	if req.PID, err = m.pidNamespace(rec.Config, pod); err != nil {
		return err
	}
	// Before the call: one that was given up may have made the container all the same.
	undo.Add("delete container in its sandbox", func(ctx context.Context) error { return m.deleteTask(ctx, rec) })
	creating, created := span.Start(ctx, "task create")
	user, err := tasks.Create(creating, req)
	created(err)
	if err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "container.created"); err != nil {
		return err
	}
	return m.move(c, opCreated, func(r *record) { r.User = &user })
}

// useImages keeps the images of a container, and returns the layers of its own one in the form that its pod needs.
func (m *Manager) useImages(ctx context.Context, id string, pod sandbox.Status, img image.Image, vols []volume) ([]string, error) {
	if err := m.images.Use(ctx, id, img); err != nil {
		return nil, err
	}
	for _, v := range vols {
		if err := m.images.Use(ctx, id, v.image); err != nil {
			return nil, volumeError(v.mount, err)
		}
	}
	ctx, end := span.Start(ctx, "layers")
	form := m.dirs
	if pod.VM {
		form = m.disks
	}
	paths, err := form.Ensure(ctx, img)
	end(err)
	return paths, err
}

// prepare finds the image and checks all that can be refused before anything is made.
func (m *Manager) prepare(ctx context.Context, c *container, pod sandbox.Status) (image.Image, *specs.Spec, error) {
	rec := c.snapshot()
	ref := rec.Config.ImageRef
	if ref == "" {
		ref = rec.Config.Image
	}
	img, err := m.images.Get(ctx, ref)
	if err == nil {
		err = m.images.Allowed(ctx, rec.Config.Image, img)
	}
	if err != nil {
		return image.Image{}, nil, err
	}
	signal, err := stopSignal(rec.Config.StopSignal, img.Config.Config.StopSignal)
	if err != nil {
		return image.Image{}, nil, err
	}
	spec, err := makeSpec(rec, pod, img)
	if err != nil {
		return image.Image{}, nil, err
	}
	if pod.VM {
		// The shim rebuilds the spec for the guest; here the result only tells early whether it will.
		if _, err := oci.ForGuest(spec); err != nil {
			return image.Image{}, nil, err
		}
	}
	c.writer.Lock() // the next save has it
	defer c.writer.Unlock()
	rec.ImageID, rec.StopSignal, rec.LogPath = img.ID.String(), signal, logPath(rec.Config, pod.Config)
	c.set(rec)
	return img, spec, nil
}

func logPath(cfg Config, pod sandbox.Config) string {
	if cfg.LogPath == "" || pod.LogDir == "" {
		return ""
	}
	return filepath.Join(pod.LogDir, cfg.LogPath)
}

func makeLogDir(path string) error {
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	return nil
}

func (m *Manager) writeBundle(id string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := os.MkdirAll(m.bundle(id), 0o700); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(m.bundle(id), specFile), data, 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}

func createRequest(rec record, bundle string, spec *specs.Spec, layers []string, img image.Image) task.CreateRequest {
	user := rec.Config.Security.User
	if user.User == "" {
		user.User = img.Config.Config.User
	}
	var relabel []string
	for _, m := range rec.Config.Mounts {
		if m.SELinuxRelabel && m.Image == "" {
			relabel = append(relabel, m.HostPath)
		}
	}
	return task.CreateRequest{
		ID: rec.ID, Bundle: bundle, Spec: spec, Layers: layers, Relabel: relabel, User: user, LogPath: rec.LogPath,
		Stdin: rec.Config.Stdin, StdinOnce: rec.Config.StdinOnce, Terminal: rec.Config.TTY,
	}
}

// pidNamespace finds the container whose processes another one asks to see, as an ephemeral one that debugs it does.
func (m *Manager) pidNamespace(cfg Config, pod sandbox.Status) (task.PIDNamespace, error) {
	s := cfg.Security
	if s.TargetPID == "" {
		shared := pod.Config.SharedPID || pod.Config.HostPID
		return task.PIDNamespace{Own: shared && !s.SharedPID && !s.HostPID}, nil
	}
	target, err := m.find(s.TargetPID)
	if err != nil {
		return task.PIDNamespace{}, fmt.Errorf("target of the PID namespace: %w", err)
	}
	switch rec := target.snapshot(); {
	case rec.Config.SandboxID != cfg.SandboxID:
		return task.PIDNamespace{}, fmt.Errorf("target of the PID namespace: container %s is of another pod: %w", rec.ID, errdefs.ErrInvalidArgument)
	case rec.State != Running:
		return task.PIDNamespace{}, fmt.Errorf("target of the PID namespace: container %s is %s: %w", rec.ID, rec.State, errdefs.ErrFailedPrecondition)
	default:
		return task.PIDNamespace{Container: rec.ID}, nil
	}
}
