package hostpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	monitorclient "github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/rootfs"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

// fakeLabeller is a policy that knows every type but "wrong", and notes what it is asked to do.
type fakeLabeller struct {
	none                bool // the policy has no contexts for containers
	said                []string
	reserved, relabeled []string
}

func (f *fakeLabeller) fresh(options []string) (labels, error) {
	f.said = options
	if f.none {
		return labels{}, nil
	}
	return labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}, nil
}
func (f *fakeLabeller) reserve(process string) { f.reserved = append(f.reserved, process) }
func (f *fakeLabeller) release(process string) {
	f.reserved = slices.DeleteFunc(f.reserved, func(s string) bool { return s == process })
}
func (f *fakeLabeller) check(label string) error {
	if strings.Contains(label, ":wrong:") {
		return unix.EINVAL
	}
	return nil
}
func (f *fakeLabeller) relabel(path, label string) error {
	if filepath.Base(path) == "plain" {
		return fmt.Errorf("setxattr: %w", unix.ENOTSUP)
	}
	if path == "/usr" {
		return errors.New("refused")
	}
	f.relabeled = append(f.relabeled, filepath.Base(path)+" "+label)
	return nil
}

// rootsAt and quietMonitor stand for what makes roots and containers.
type rootsAt struct {
	roots
	dir  string
	opts rootfs.Options
}

func (r *rootsAt) Mount(_ context.Context, _ string, _ []string, opts rootfs.Options) (string, error) {
	r.opts = opts
	return r.dir, nil
}
func (*rootsAt) Remove(context.Context, string) error { return nil }

type quietMonitor struct{ monitor }

func (quietMonitor) Create(context.Context, monitorclient.CreateRequest) error { return nil }

func TestSELinux(t *testing.T) {
	const own, files = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
	for _, test := range []struct {
		name          string
		off, none     bool
		pod, wanted   string
		relabel       []string
		options       []string
		process, file string
		relabeled     []string
		bad           func(error) bool
	}{
		{name: "of the pod", process: own, file: files},
		{name: "pod's options", pod: "::svirt_t:s0:c3", options: []string{"type:svirt_t", "level:s0:c3"}, process: own, file: files},
		{name: "a type of its own", wanted: "::spc_t:", process: "system_u:system_r:spc_t:s0:c1,c2", file: files},
		{name: "a level of its own", wanted: ":::s0:c7,c8", process: "system_u:system_r:container_t:s0:c7,c8", file: "system_u:object_r:container_file_t:s0:c7,c8"},
		{name: "all of its own", wanted: "a:b:c:d", process: "a:b:c:d", file: "a:object_r:container_file_t:d"},
		{name: "privileged", wanted: oci.SELinuxUnconfined, file: files},
		{name: "volumes", relabel: []string{"/srv/data", "/srv/plain"}, process: own, file: files, relabeled: []string{"data " + files}},
		{name: "a volume that must not be", relabel: []string{"/usr"}, bad: errdefs.IsFailedPrecondition},
		{name: "an unknown type", wanted: "::wrong:", bad: errdefs.IsInvalidArgument},
		{name: "without contexts", none: true},
		{name: "a label without contexts", none: true, wanted: "::spc_t:", bad: errdefs.IsFailedPrecondition},
		{name: "off", off: true, pod: "::svirt_t:", wanted: "::wrong:", relabel: []string{"/usr"}},
		{name: "off and privileged", off: true, wanted: oci.SELinuxUnconfined},
	} {
		t.Run(test.name, func(t *testing.T) {
			policy, mounted := &fakeLabeller{none: test.none}, &rootsAt{dir: t.TempDir()}
			l := &Launcher{
				Options: Options{Dir: t.TempDir(), CgroupParent: "pistis", Roots: mounted},
				clamp:   &clamp{log: slog.New(slog.DiscardHandler), said: map[string]bool{}}, labels: policy,
			}
			if test.off {
				l.labels = nil
			}
			p := l.pod(sandbox.LaunchRequest{ID: "p1", Config: sandbox.Config{SELinuxLabel: test.pod}, NetNS: "/run/netns/p1"})
			if err := os.Mkdir(p.dir, 0o711); err != nil {
				t.Fatal(err)
			}
			if err := l.labelPod(p); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(policy.said, test.options) {
				t.Errorf("options %q, want %q", policy.said, test.options)
			}
			spec := generated(t)
			spec.Process.SelinuxLabel = test.wanted
			_, err := (&tasks{monitor: quietMonitor{}, l: l, p: p}).Create(t.Context(), task.CreateRequest{ID: "c1", Bundle: t.TempDir(), Spec: spec, Relabel: test.relabel})
			if test.bad != nil {
				if err == nil || !test.bad(err) {
					t.Errorf("not refused as it should be: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			expectLabels(t, spec, mounted.opts, test.process, test.file)
			if !slices.Equal(policy.relabeled, test.relabeled) {
				t.Errorf("relabeled: %q, want %q", policy.relabeled, test.relabeled)
			}
		})
	}
}

func expectLabels(t *testing.T, spec *specs.Spec, root rootfs.Options, process, files string) {
	t.Helper()
	if spec.Process.SelinuxLabel != process || spec.Linux.MountLabel != files || root.MountLabel != files {
		t.Errorf("process %q, mounts %q, root %q; want %q, %q", spec.Process.SelinuxLabel, spec.Linux.MountLabel, root.MountLabel, process, files)
	}
}

// TestLabelsOfPod: categories are the pod's alone as long as it is there, also for a daemon that comes later; its files and
// shared memory have its label.
func TestLabelsOfPod(t *testing.T) {
	policy := &fakeLabeller{}
	l := &Launcher{Options: Options{Dir: t.TempDir(), CgroupParent: "pistis"}, labels: policy}
	p := l.pod(sandbox.LaunchRequest{ID: "p1"})
	if err := os.Mkdir(p.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.labelPod(p), l.labelShared(p), l.reserveLabels(p)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range policy.relabeled {
		name, _, _ := strings.Cut(line, " ")
		got = append(got, name)
	}
	if want := []string{"hosts", "resolv.conf", "hostname", "shm"}; !slices.Equal(got, want) {
		t.Errorf("relabeled: %q, want %q", got, want)
	}
	if len(policy.reserved) != 1 {
		t.Errorf("reserved: %q", policy.reserved)
	}
	own, err := p.labels()
	if err != nil {
		t.Fatal(err)
	}
	if l.releaseLabels(own); len(policy.reserved) != 0 {
		t.Errorf("after the release: %q", policy.reserved)
	}
	none := &Launcher{Options: l.Options, labels: &fakeLabeller{none: true}}
	if err := none.labelPod(none.pod(sandbox.LaunchRequest{ID: "p1", Config: sandbox.Config{SELinuxLabel: "::a:"}})); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a pod's label in a policy without contexts: %v", err)
	}
}
