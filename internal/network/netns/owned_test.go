package netns

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCreateOwned(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: namespaces need root")
	}
	dir := t.TempDir()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	path, err := CreateOwned(dir, "p1", ids, ids)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(path); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	user := inode(t, path+UserSuffix)
	for _, suffix := range []string{"", IPCSuffix, UTSSuffix} {
		f, err := os.Open(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		var stat unix.Stat_t
		err = unix.Fstat(owner, &stat)
		unix.Close(owner)
		if err != nil || stat.Ino != user {
			t.Errorf("namespace %q is not owned by the pod's user namespace: %v", suffix, err)
		}
	}
	if err := Do(path, func() error {
		data, err := os.ReadFile("/proc/net/dev")
		if !strings.Contains(string(data), "lo:") {
			t.Errorf("no loopback: %s", data)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if ids, err := List(dir); err != nil || len(ids) != 1 || ids[0] != "p1" {
		t.Errorf("list: %v, %v", ids, err)
	}
	if _, err := CreateOwned(dir, "bad", []syscall.SysProcIDMap{{ContainerID: 0, HostID: -5, Size: 0}}, ids); err == nil {
		t.Error("an impossible mapping was taken")
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}
