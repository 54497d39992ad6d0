package container

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func withVolume(ref, sub string) Config {
	cfg := config("a")
	cfg.Mounts = []Mount{
		{ContainerPath: "/host", HostPath: "/", Propagation: "private"},
		{ContainerPath: "/data", Image: ref, SubPath: sub, Readonly: true, Propagation: "private"},
	}
	return cfg
}

func TestImageVolume(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	id, err := m.Create(t.Context(), withVolume("data", "part"))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(w.create.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/data" })
	if i < 0 {
		t.Fatalf("no mount at /data: %v", w.create.Spec.Mounts)
	}
	got := w.create.Spec.Mounts[i]
	if got.Source != "/volumes/"+id+"-1/part" || !slices.Contains(got.Options, "ro") || !slices.Contains(got.Options, "noexec") {
		t.Errorf("mount: %+v", got)
	}
	if !slices.Equal(w.used, []string{"sha256:1234", "sha256:5678"}) {
		t.Errorf("images in use: %v", w.used)
	}

	// The next daemon keeps it, and removes those of nobody.
	w.volumes["gone-0"] = ""
	m = newManager(t, w, dir)
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.volumes) != 1 || w.volumes[id+"-1"] == "" {
		t.Errorf("volumes after a restart: %v", w.volumes)
	}
	if err := m.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	assertNothing(t, w, dir)
}

func TestImageVolumeFails(t *testing.T) {
	tests := []struct {
		name, ref, fault string
		class            func(error) bool
	}{
		{"an image that is not there", "missing", "", errdefs.IsNotFound},
		{"its content", "data", "volume get", nil},
		{"the mount", "data", "volume mount", nil},
		{"the container", "data", "task create", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			if test.fault != "" {
				w.fail(test.fault, errFault)
			}
			_, err := newManager(t, w, dir).Create(t.Context(), withVolume(test.ref, ""))
			if err == nil || test.class != nil && !test.class(err) {
				t.Errorf("error %v", err)
			}
			if errors.Is(err, ErrImageVolume) != (test.fault != "task create") {
				t.Errorf("error %v is of the volume: %v", err, errors.Is(err, ErrImageVolume))
			}
			assertNothing(t, w, dir)
		})
	}
}
