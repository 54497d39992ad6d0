package share_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/share"
)

// hostMount mounts something on the host for the length of a test.
func hostMount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(target, 0o755), unix.Mount(source, target, fstype, flags, data)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

// TestPassingMounts: what the host mounts below a share appears in it, and can be unmounted although the guest remembers
// files of it; a file that the guest has open keeps it busy, as it would on the host.
func TestPassingMounts(t *testing.T) {
	h := startHost(t)
	top, late := filepath.Join(t.TempDir(), "top"), t.TempDir()
	hostMount(t, "tmpfs", top, "tmpfs", 0, "")
	if err := errors.Join(unix.Mount("", top, "", unix.MS_SHARED, ""), os.MkdirAll(filepath.Join(top, "at"), 0o755), os.WriteFile(filepath.Join(late, "file"), []byte("late"), 0o600)); err != nil {
		t.Fatal(err)
	}
	mnt, _ := mount(t, h, share.Share{Path: top, Follow: true, Valid: time.Millisecond})
	for range 2 {
		if err := unix.Mount(late, filepath.Join(top, "at"), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		var f *os.File
		for f == nil { // until what was known before is not believed any more
			f, _ = os.Open(filepath.Join(mnt, "at/file"))
		}
		if err := unix.Unmount(filepath.Join(top, "at"), 0); !errors.Is(err, unix.EBUSY) {
			t.Errorf("unmounting what is in use: %v", err)
		}
		f.Close()
		for err := unix.EBUSY; err != 0; { // the server hears of the end a moment later
			err, _ = unix.Unmount(filepath.Join(top, "at"), 0).(unix.Errno)
			if err != 0 && err != unix.EBUSY {
				t.Fatal(err)
			}
		}
		for { // likewise
			if _, err := os.Stat(filepath.Join(mnt, "at/file")); errors.Is(err, os.ErrNotExist) {
				break
			}
		}
	}
}

// TestFilesOfTheKernel: files that are made when they are read have no size, and are read all the same, anew each time.
func TestFilesOfTheKernel(t *testing.T) {
	h := startHost(t)
	mnt, _ := mount(t, h, share.Share{Path: "/proc", ReadOnly: true, Valid: time.Hour})
	want, err := os.ReadFile("/proc/sys/kernel/ostype")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(mnt, "sys/kernel/ostype")); err != nil || string(got) != string(want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if got, err := os.ReadFile(filepath.Join(mnt, "1/mountinfo")); err != nil || len(got) == 0 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	f, err := os.Open(filepath.Join(mnt, "uptime"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := func() string {
		b := make([]byte, 100)
		n, err := f.ReadAt(b, 0)
		if n == 0 {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	for first := read(); read() == first; { // uptime is told in hundredths of a second
	}
}
