package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/share"
)

// fakeVM shares everything but one path, and keeps what is shared.
type fakeVM struct {
	refuse   string
	shared   []string
	released []string
}

func (f *fakeVM) AttachShare(_ context.Context, want share.Share, alone bool) (id, path string, err error) {
	if want.Path == f.refuse {
		return "", "", errors.New("refused")
	}
	f.shared = append(f.shared, want.Path)
	id = fmt.Sprintf("s%d", len(f.shared))
	return id, "/shares/" + id, nil
}

func (f *fakeVM) ReleaseShares(_ context.Context, ids []string) error {
	f.released = append(f.released, ids...)
	return nil
}

// TestPlace: a subPath of an emptyDir volume is a part of that volume's share, unless the agent is too old for that or the host's
// mounts matter.
func TestPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it mounts: it needs root")
	}
	pod := filepath.Join(t.TempDir(), "pods/uid")
	empty, sub := filepath.Join(pod, "volumes/kubernetes.io~empty-dir/data"), filepath.Join(pod, "volume-subpaths/data/c/0")
	if err := errors.Join(os.MkdirAll(empty+"/a/b", 0o755), os.MkdirAll(sub, 0o755), unix.Mount(empty+"/a/b", sub, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(sub, unix.MNT_DETACH) })
	for _, tt := range []struct {
		options []string
		parts   bool
		part    bool
	}{
		{[]string{"rbind", "rw"}, true, true},
		{[]string{"rbind", "ro"}, true, true},
		{[]string{"rbind", "rro"}, true, false},
		{[]string{"rbind", "rslave"}, true, false},
		{[]string{"rbind", "rw"}, false, false},
	} {
		v := &fakeVM{}
		mounts := []specs.Mount{
			{Destination: "/proc", Type: "proc"}, {Destination: "/whole", Type: "bind", Source: empty}, {Destination: "/part", Type: "bind", Source: sub, Options: tt.options},
		}
		p, err := Place(t.Context(), v, mounts, tt.parts)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{empty, sub}
		if tt.part {
			want = []string{empty, empty}
		}
		if !slices.Equal(v.shared, want) || !slices.Equal(p.Shares, []string{"s1", "s2"}) || len(p.Parts) > 0 != tt.part || mounts[1].Source != "/shares/s1" {
			t.Errorf("%v: shared %v, %+v, mounts %+v", tt.options, v.shared, p, mounts)
		}
		if tt.part && (p.Parts[0].Mount != 2 || p.Parts[0].Share != "s2" || p.Parts[0].Path != "a/b" || mounts[2].Source != "") {
			t.Errorf("part %+v of %+v", p.Parts[0], mounts[2])
		}
	}
	// The kubelet's directory may be a symbolic link: the kernel tells where the part is, and the kubelet does not.
	link := filepath.Join(t.TempDir(), "kubelet")
	if err := os.Symlink(pod, link); err != nil {
		t.Fatal(err)
	}
	linked := &fakeVM{}
	if _, err := Place(t.Context(), linked, []specs.Mount{
		{Destination: "/whole", Type: "bind", Source: filepath.Join(link, "volumes/kubernetes.io~empty-dir/data")}, {Destination: "/part", Type: "bind", Source: sub},
	}, true); err != nil || !slices.Equal(linked.shared, []string{empty, empty}) {
		t.Errorf("by a link: shared %v, %v", linked.shared, err)
	}
	v := &fakeVM{refuse: "/none"}
	mounts := []specs.Mount{{Destination: "/whole", Type: "bind", Source: empty}, {Destination: "/x", Type: "bind", Source: "/none"}}
	if p, err := Place(t.Context(), v, mounts, true); err == nil || len(p.Shares) > 0 || !slices.Equal(v.released, []string{"s1"}) {
		t.Errorf("refused: %+v, %v, released %v", p, err, v.released)
	}
}
