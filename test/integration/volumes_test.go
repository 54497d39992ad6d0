package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// volume is a directory of the host for a test.
func volume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mounted(c *runtime.ContainerConfig, mounts ...*runtime.Mount) *runtime.ContainerConfig {
	c.Mounts = mounts
	return c
}

// TestVolumes: what the host and the containers of a VM pod see of the same files.
func TestVolumes(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("volumes", nil)
	server := filepath.Join(d.scope.State)

	data, ro := volume(t), volume(t)
	write(t, filepath.Join(data, "from-host"), "host\n")
	write(t, filepath.Join(data, "nested/below"), "hidden\n")
	write(t, filepath.Join(ro, "file"), "fixed\n")
	single := filepath.Join(volume(t), "single")
	write(t, single, "")
	hosts := filepath.Join(volume(t), "hosts")
	write(t, hosts, "127.0.0.1 localhost\n10.9.8.7 from-kubelet\n")

	first := d.launch(pod, config, mounted(shell("first", forever),
		&runtime.Mount{HostPath: data, ContainerPath: "/data"},
		&runtime.Mount{HostPath: ro, ContainerPath: "/data/nested/ro", Readonly: true},
		&runtime.Mount{HostPath: filepath.Join(data, "nested"), ContainerPath: "/data/nested"},
		&runtime.Mount{HostPath: single, ContainerPath: "/dev/termination-log"},
		&runtime.Mount{HostPath: hosts, ContainerPath: "/etc/hosts"},
	))
	t.Run("read and write", func(t *testing.T) {
		expect(t, "the host's file", d.execSync(first, "cat", "/data/from-host"), "host\n")
		d.execSync(first, "sh", "-c", script("echo guest > /data/from-guest", "mkdir -m 2750 /data/dir", "chown 1000:1001 /data/dir", "su tester -c 'echo x > /data/dir/own' 2>/dev/null || true", "sync"))
		expect(t, "the guest's file on the host", read(t, filepath.Join(data, "from-guest")), "guest\n")
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(data, "dir"), &st); err != nil {
			t.Fatal(err)
		}
		expect(t, "owner", fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777), "1000:1001 2750")
		write(t, filepath.Join(data, "from-host"), "changed by the host\n")
		eventually(t, "the host's change in the guest", func() bool {
			return d.execSync(first, "cat", "/data/from-host") == "changed by the host\n"
		})
	})
	t.Run("read-only", func(t *testing.T) {
		expect(t, "content", d.execSync(first, "cat", "/data/nested/ro/file"), "fixed\n")
		out := d.execSync(first, "sh", "-c", "touch /data/nested/ro/x 2>&1; (echo y > /data/nested/ro/file) 2>&1; true")
		expect(t, "refusals", strings.Count(out, "Read-only file system"), 2)
	})
	t.Run("single files", func(t *testing.T) {
		d.execSync(first, "sh", "-c", "echo bye > /dev/termination-log")
		expect(t, "termination log", read(t, single), "bye\n")
		expect(t, "hosts", strings.Contains(d.execSync(first, "cat", "/etc/hosts"), "from-kubelet"), true)
	})
	t.Run("nested mounts", func(t *testing.T) {
		expect(t, "nested", d.execSync(first, "cat", "/data/nested/below"), "hidden\n")
	})
	t.Run("two containers", func(t *testing.T) {
		second := d.launch(pod, config, mounted(shell("second", forever), &runtime.Mount{HostPath: data, ContainerPath: "/other", Readonly: true},
			&runtime.Mount{HostPath: data, ContainerPath: "/all-ro", Readonly: true, RecursiveReadOnly: true}))
		expect(t, "a recursive read-only mount", d.execSync(second, "sh", "-c", "cat /all-ro/from-guest; (echo x > /all-ro/x) 2>/dev/null || echo refused"), "guest\nrefused\n")
		d.execSync(first, "sh", "-c", "echo shared > /data/shared; mkfifo /data/fifo; (echo through the fifo > /data/fifo) </dev/null >/dev/null 2>&1 &")
		expect(t, "the other's file", d.execSync(second, "cat", "/other/shared"), "shared\n")
		expect(t, "the other's FIFO", d.execSync(second, "cat", "/other/fifo"), "through the fifo\n")
	})
	t.Run("file system", func(t *testing.T) { fileSystem(t, d, pod, config) })
	t.Run("big file", func(t *testing.T) { bigFile(t, d, first, data) })
	t.Run("memory in common", func(t *testing.T) { keptMemory(t, d, first) })

	expect(t, "mounts of the shares on the host", strings.Count(read(t, "/proc/self/mountinfo"), data), 0)
	if n := shareServers(t, server); n != 1 {
		t.Errorf("%d share servers of one pod", n)
	}
	d.stopAndRemove(pod)
	if n := shareServers(t, server); n != 0 {
		t.Errorf("%d share servers after the pod", n)
	}
}

// shareServers counts the server processes of a daemon's pods.
func shareServers(t *testing.T, state string) (n int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		b, err := os.ReadFile(path) // the process may have gone
		if err == nil && bytes.Contains(b, []byte(state+"/")) && bytes.Contains(b, []byte("share-server")) {
			n++
		}
	}
	return n
}

// guestDir names the directory in which TestInGuest works; it is set inside a guest only.
const guestDir = "PISTIS_TEST_GUEST_DIR"

// guestSide is a container that runs a test of this program on dir, which is mounted in it.
func guestSide(t *testing.T, name, test, dir string, mounts ...*runtime.Mount) *runtime.ContainerConfig {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := shell(name, script("cd /tmp", "/bin-share/"+filepath.Base(self)+" -test.v -test.run '^"+test+"$'"))
	c.Envs = []*runtime.KeyValue{{Key: guestDir, Value: []byte(dir)}}
	return mounted(c, append(mounts, &runtime.Mount{HostPath: filepath.Dir(self), ContainerPath: "/bin-share", Readonly: true})...)
}

// fileSystem runs TestInGuest in the guest, on a share.
func fileSystem(t *testing.T, d *daemon, pod string, config *runtime.PodSandboxConfig) {
	dir := volume(t)
	out := d.run(pod, config, guestSide(t, "guest-side", "TestInGuest", "/work", &runtime.Mount{HostPath: dir, ContainerPath: "/work"}))
	t.Log(out)
	if !strings.Contains(out, "--- PASS: TestInGuest") {
		t.Error("the guest's side did not pass")
	}
	for name, want := range map[string]string{"mmap": "mapped and written", "renamed": "still open", "sparse": ""} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s on the host: %d bytes, %v", name, len(b), err)
		}
	}
}

// bigFile writes 100 MiB in the guest and compares.
func bigFile(t *testing.T, d *daemon, id, dir string) {
	out := d.execSync(id, "sh", "-c", script("cd /data", "time dd if=/dev/urandom of=big bs=1M count=100 conv=fsync 2>&1", "time sha256sum big 2>&1"))
	t.Log(out)
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "size", n, 100<<20)
	if !strings.Contains(out, fmt.Sprintf("%x", sum.Sum(nil))) {
		t.Error("the guest reads something else than the host")
	}
}

// keptMemory: data of a big file passed through the memory that guest and host have in common, and a container has no access to that,
// whatever nodes it makes.
func keptMemory(t *testing.T, d *daemon, id string) {
	var number []string
	eventually(t, "a block device of the guest's that is memory, since there was something large", func() bool {
		number = strings.Fields(d.execSync(id, "sh", "-c", "cat /sys/block/pmem*/dev 2>/dev/null | tr : ' '"))
		return len(number) == 2
	})
	out := d.execSync(id, "sh", "-c", "ls /dev; mknod /tmp/node b "+strings.Join(number, " ")+"; head -c 1 /tmp/node 2>&1; true")
	if strings.Contains(out, "pmem") || !strings.Contains(out, "not permitted") {
		t.Errorf("/dev, and what is read from a node for the memory: %s", out)
	}
}

// TestUpdatedVolumes: what the kubelet changes by swapping a link shows at once, and parts of two versions never
// together.
func TestUpdatedVolumes(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("updated", nil)
	s := newSettings(t, "configmap")
	id := d.launch(pod, config, mounted(shell("reader", forever), &runtime.Mount{HostPath: s.dir, ContainerPath: "/etc/settings", Readonly: true}))
	for n := 2; n <= 5; n++ {
		expect(t, "before", d.execSync(id, "cat", "/etc/settings/a", "/etc/settings/b"), fmt.Sprintf("a%d\nb%[1]d\n", n-1))
		s.update(n)
		expect(t, "after", d.execSync(id, "cat", "/etc/settings/a", "/etc/settings/b"), fmt.Sprintf("a%d\nb%[1]d\n", n))
	}
}

// TestRefusedVolumes: what a VM cannot have is refused with a reason, and leaves nothing.
func TestRefusedVolumes(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("refused", nil)
	create := func(m *runtime.Mount) error {
		_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: mounted(shell("bad", "true"), m), SandboxConfig: config})
		return err
	}
	dir := volume(t)
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, "a socket", create(&runtime.Mount{HostPath: socket, ContainerPath: "/x"}), codes.Unimplemented, "socket")
	refused(t, "a FIFO", create(&runtime.Mount{HostPath: fifo, ContainerPath: "/x"}), codes.Unimplemented, "FIFO")
	refused(t, "a device", create(&runtime.Mount{HostPath: "/dev/null", ContainerPath: "/x"}), codes.Unimplemented, "device")
	refused(t, "bidirectional propagation", create(&runtime.Mount{
		HostPath: dir, ContainerPath: "/x", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL,
	}), codes.Unimplemented, "Bidirectional")
	private := filepath.Join(dir, "private")
	hostMount(t, "tmpfs", private, "tmpfs", 0, "size=64k")
	if err := unix.Mount("", private, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	refused(t, "propagation from a mount that is not shared", create(&runtime.Mount{
		HostPath: private, ContainerPath: "/x", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	}), codes.InvalidArgument, "not shared")
	refused(t, "a missing path", create(&runtime.Mount{HostPath: filepath.Join(dir, "none"), ContainerPath: "/x"}), codes.InvalidArgument, "none")
}
