package vmm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

const jailUID = 2_000_007

// TestJail runs this program in a jail, where it looks around.
func TestJail(t *testing.T) {
	if exists(jailedProgram) {
		lookAround()
		return
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, jailUID, jailUID); err != nil {
		t.Fatal(err)
	}
	early, late := fileOf(t, "early"), fileOf(t, "late")
	defer early.Close()
	defer late.Close()
	if err := late.Chown(jailUID, jailUID); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "go"), 0o666); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	kit := NewKit(hypervisor.Config{RunDir: dir, User: &hypervisor.User{UID: jailUID, GID: jailUID}}, "null", "net/tun")
	kit.Jail.Files["/early"], kit.Jail.Dirs = early, nil
	defer kit.Failed()
	if err := kit.CommonMemory(1 << 20); err != nil {
		t.Fatal(err)
	}
	p, err := Start(Command{Name: "inside", Path: self, Args: []string{"-test.run=^TestJail$", "-test.v"}, User: kit.user, Jail: kit.Jail})
	kit.Started()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	seen, err := p.Show("/late", late, false)
	if err != nil {
		t.Fatal(err)
	}
	info, err := late.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Ino != seen.Ino || stat.Dev != seen.Dev {
		t.Errorf("the jail has inode %d of device %d, the host %d of %d", seen.Ino, seen.Dev, stat.Ino, stat.Dev)
	}
	if _, err := p.Show("/gone", early, true); err != nil {
		t.Fatal(err)
	}
	if err := p.Hide("/gone"); err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		name := fmt.Sprintf("/block-%t", readOnly)
		stat, err := p.Show(name, blockDevice(t), readOnly)
		if err != nil {
			t.Fatal(err)
		}
		owner, mode := uint32(jailUID), uint32(0o600)
		if readOnly {
			owner, mode = 0, 0o040
		}
		if stat.Uid != owner || stat.Gid != jailUID || stat.Mode != unix.S_IFBLK|mode || stat.Rdev != testDevice {
			t.Errorf("%s is %#o of %d:%d, device %#x", name, stat.Mode, stat.Uid, stat.Gid, stat.Rdev)
		}
		if err := p.Hide(name); err != nil {
			t.Fatal(err)
		}
	}
	if p.Ending() {
		t.Error("it is ending while it waits")
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if !p.Ending() {
		t.Error("it is not ending and has ended")
	}
	found, err := os.ReadFile(filepath.Join(dir, "seen"))
	if err != nil {
		t.Fatalf("%v; %s, it said: %s", err, p.End(), p.Said(20))
	}
	for _, want := range []string{
		"root: dev early late memory run vmm", "memory: common of 1048576 bytes", "memory is written to: <nil>", "more of it: no space left on device",
		"write beside it: permission denied", "dev: net null", "uid 2000007", "early: early", "late: written", "interfaces: lo",
		"write in the root: permission denied", "write of early: read-only file system",
	} {
		if !slices.Contains(strings.Split(string(found), "\n"), want) {
			t.Errorf("the jail lacks %q, it has:\n%s", want, found)
		}
	}
	if got, err := os.ReadFile(late.Name()); err != nil || string(got) != "written" {
		t.Errorf("the late file holds %q, %v", got, err)
	}
	got := make([]byte, 5)
	if _, err := kit.Memory.ReadAt(got, 1<<19); err != nil || string(got) != "guest" {
		t.Errorf("memory in common holds %q, %v", got, err)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || string(before) != string(after) {
		t.Errorf("the host's mounts changed: %v", err)
	}
}

// testDevice is a number that no driver has.
const testDevice = 240<<8 | 7

// blockDevice is a block device that nothing can be done with.
func blockDevice(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "block")
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, testDevice); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func fileOf(t *testing.T, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), text)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// lookAround writes what there is to where the host sees it.
func lookAround() {
	if _, err := os.ReadFile(JailDir + "/go"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	var seen strings.Builder
	for _, dir := range []string{"/", "/dev"} {
		entries, err := os.ReadDir(dir)
		var names []string
		for _, e := range entries {
			if !slices.Contains([]string{"lib", "lib64", "usr"}, e.Name()) { // of a test that is linked dynamically
				names = append(names, e.Name())
			}
		}
		fmt.Fprintf(&seen, "%s: %s\n", map[string]string{"/": "root", "/dev": "dev"}[dir], strings.Join(names, " "))
		if err != nil {
			fmt.Fprintln(&seen, err)
		}
	}
	fmt.Fprintf(&seen, "uid %d\n", os.Getuid())
	text, err := os.ReadFile("/early")
	fmt.Fprintf(&seen, "early: %s\n", text)
	err = errors.Join(err, os.WriteFile("/late", []byte("written"), 0))
	late, readErr := os.ReadFile("/late")
	fmt.Fprintf(&seen, "late: %s\n", late)
	all, netErr := net.Interfaces()
	for _, i := range all {
		fmt.Fprintf(&seen, "interfaces: %s\n", i.Name)
	}
	if err = errors.Join(err, readErr, netErr); err != nil {
		fmt.Fprintln(&seen, err)
	}
	lookAtMemory(&seen)
	fmt.Fprintf(&seen, "write in the root: %v\n", errors.Unwrap(os.WriteFile("/new", nil, 0o600)))
	fmt.Fprintf(&seen, "write of early: %v\n", errors.Unwrap(os.WriteFile("/early", nil, 0)))
	if err := os.WriteFile(JailDir+"/seen", []byte(seen.String()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func lookAtMemory(seen io.Writer) {
	f, err := os.OpenFile(MemoryFile, os.O_RDWR, 0)
	if err != nil {
		fmt.Fprintln(seen, err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		fmt.Fprintf(seen, "memory: %s of %d bytes\n", info.Name(), info.Size())
		_, err = f.WriteAt([]byte("guest"), info.Size()/2)
	}
	fmt.Fprintf(seen, "memory is written to: %v\n", err)
	fmt.Fprintf(seen, "more of it: %v\n", unix.Fallocate(int(f.Fd()), 0, 0, 2<<20))
	fmt.Fprintf(seen, "write beside it: %v\n", errors.Unwrap(os.WriteFile(filepath.Join(memoryDir, "more"), nil, 0o600)))
}
