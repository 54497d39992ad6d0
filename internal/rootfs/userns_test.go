package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const uidBase, gidBase = 100_000, 200_000

// userNamespace makes a user namespace that lasts as long as the test, and returns its path.
func userNamespace(t testing.TB) string {
	t.Helper()
	needRoot(t)
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uidBase, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gidBase, Size: 65536}},
		Pdeathsig:   unix.SIGKILL,
	}
	if err := holder.Start(); err != nil {
		t.Skipf("SKIPPED: this machine has no user namespaces: %v", err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	return fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid)
}

// as runs a command with other ids and without capabilities.
func as(uid, gid uint32, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// open makes a directory of the test, and those above it, searchable by all.
func open(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for above := dir; above != os.TempDir() && above != "/"; above = filepath.Dir(above) {
		if err := os.Chmod(above, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUserNamespace(t *testing.T) {
	ns := userNamespace(t)
	dir := open(t)
	r := rootsIn(t, filepath.Join(dir, "roots"))
	layers := filepath.Join(dir, "layers")
	low, high := layer(t, layers, "low", "root", "web"), layer(t, layers, "high", "b")
	if err := errors.Join(os.Chown(low+"/web", 33, 34), os.Chown(low, 0, 7), os.Chmod(layers, 0o700)); err != nil {
		t.Fatal(err)
	}
	at, err := r.Mount(t.Context(), "x", []string{low, high}, Options{UserNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	owners := func(path string, uid, gid uint32) {
		t.Helper()
		if st := stat(t, path); st.Uid != uidBase+uid || st.Gid != gidBase+gid {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
	}
	owners(at, 0, 7)
	owners(at+"/root", 0, 0)
	owners(at+"/web", 33, 34)
	if got := mounts(t, r.dir); len(got) != 1 {
		t.Errorf("mounted: %q", got)
	}
	// Its root can work in it; others on this machine do not get there.
	if err := as(uidBase, gidBase, "/bin/sh", "-c", "cd "+at+" && echo x >new && echo y >>root"); err != nil {
		t.Errorf("as its root: %v", err)
	}
	owners(at+"/new", 0, 0)
	owners(at+"/root", 0, 0)
	for _, path := range []string{at, filepath.Join(r.dir, "x", data, upper)} {
		if err := as(1000, 1000, "/bin/ls", path); err == nil {
			t.Errorf("a stranger can look at %s", path)
		}
	}
	if st := stat(t, low+"/root"); st.Uid != 0 || content(t, low+"/root") != "low" {
		t.Error("the layer has changed")
	}

	image, err := r.MountImage(t.Context(), "image", []string{low}, Options{UserNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	owners(image, 0, 7)
	owners(image+"/web", 33, 34)
	none, err := r.Mount(t.Context(), "none", nil, Options{UserNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	owners(none, 0, 0)
	remove(t, r, "x", "image", "none")

	elsewhere := layer(t, dir, "elsewhere")
	if _, err := r.Mount(t.Context(), "x", []string{low, elsewhere}, Options{UserNS: ns}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("layers of two directories: %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Mount(t.Context(), "x", []string{low}, Options{UserNS: ns}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("below a closed directory: %v", err)
	}
	if got := names(t, r.dir); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}
