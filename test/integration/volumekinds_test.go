package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// volumePod is a VM pod whose two containers mount the same volumes.
type volumePod struct {
	d        *daemon
	one, two string
}

// in runs a script in the first container.
func (p volumePod) in(lines ...string) string {
	return p.d.execSync(p.one, "sh", "-c", script(lines...))
}

// inTwo runs it in the second.
func (p volumePod) inTwo(lines ...string) string {
	return p.d.execSync(p.two, "sh", "-c", script(lines...))
}

// volumeKind is a kind of volume: what is mounted, and what must hold in the containers.
type volumeKind struct {
	name   string
	mounts []*runtime.Mount
	check  func(t *testing.T, p volumePod)
}

// TestVolumeKinds: every kind of volume that a pod can have, in one VM pod. Its subtests are the table in docs/volumes.md.
func TestVolumeKinds(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pods := filepath.Join(volume(t), "pods/uid")
	var kinds []volumeKind
	for _, some := range [][]volumeKind{hostPathKinds(t), updatedKinds(t), emptyDirKinds(t, pods), nestedKinds(t, pods), propagationKinds(t)} {
		kinds = append(kinds, some...)
	}
	var mounts []*runtime.Mount
	for _, k := range kinds {
		mounts = append(mounts, k.mounts...)
	}
	pod, config := d.runPod("kinds", nil)
	p := volumePod{d: d}
	p.one = d.launch(pod, config, mounted(shell("one", forever), mounts...))
	p.two = d.launch(pod, config, mounted(shell("two", forever), mounts...))
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { k.check(t, p) })
	}
	t.Run("sockets and locks between containers", func(t *testing.T) { between(t, d, pod, config) })
	d.stopAndRemove(pod)
}

func hostPathKinds(t *testing.T) []volumeKind {
	needs(t)
	dir, file := volume(t), filepath.Join(volume(t), "file")
	write(t, filepath.Join(dir, "from-host"), "host\n")
	write(t, file, "one\n")
	big := filepath.Join(dir, "big")
	write(t, big, "")
	if err := os.Truncate(big, 5<<30); err != nil {
		t.Fatal(err)
	}
	odd := "\xff\xfe not UTF-8 " + strings.Repeat("n", 230)
	write(t, filepath.Join(dir, odd), "odd\n")
	log := filepath.Join(volume(t), "termination")
	write(t, log, "")
	shm := filepath.Join(volume(t), "shm") // as container managers call what they have for it
	if err := os.Mkdir(shm, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(shm, "from-host"), "shm\n")
	small := filepath.Join(volume(t), "small")
	hostMount(t, "tmpfs", small, "tmpfs", 0, "size=1m")
	at := func(m ...*runtime.Mount) []*runtime.Mount { return m }
	return []volumeKind{
		{"hostPath directory", at(&runtime.Mount{HostPath: dir, ContainerPath: "/v/dir"}), func(t *testing.T, p volumePod) {
			expect(t, "the host's file", p.in("cat /v/dir/from-host", "echo guest > /v/dir/from-guest"), "host\n")
			expect(t, "the guest's file", read(t, filepath.Join(dir, "from-guest")), "guest\n")
			write(t, filepath.Join(dir, "from-host"), "changed\n")
			eventually(t, "the host's change", func() bool { return p.in("cat /v/dir/from-host") == "changed\n" })
		}},
		{"hostPath file", at(&runtime.Mount{HostPath: file, ContainerPath: "/v/file"}), func(t *testing.T, p volumePod) {
			expect(t, "content", p.in("cat /v/file", "echo two > /v/file"), "one\n")
			expect(t, "on the host", read(t, file), "two\n")
		}},
		{"hostPath over /dev/shm", at(&runtime.Mount{HostPath: shm, ContainerPath: "/dev/shm"}), func(t *testing.T, p volumePod) {
			expect(t, "content", p.in("cat /dev/shm/from-host", "echo guest > /dev/shm/from-guest"), "shm\n")
			expect(t, "on the host", read(t, filepath.Join(shm, "from-guest")), "guest\n")
		}},
		{"files of the host's kernel", at(&runtime.Mount{HostPath: "/proc", ContainerPath: "/v/proc", Readonly: true}), func(t *testing.T, p volumePod) {
			expect(t, "the host's name", p.in("cat /v/proc/sys/kernel/hostname"), read(t, "/proc/sys/kernel/hostname"))
		}},
		{"a volume that is full", at(&runtime.Mount{HostPath: small, ContainerPath: "/v/small"}), func(t *testing.T, p volumePod) {
			out := p.in("dd if=/dev/zero of=/v/small/full bs=64k count=32 conv=fsync 2>&1 || true", "rm /v/small/full", "echo room > /v/small/file")
			if !strings.Contains(out, "No space left") {
				t.Errorf("2 MiB in a volume of 1 MiB: %s", out)
			}
			expect(t, "after that", read(t, filepath.Join(small, "file")), "room\n")
		}},
		{"ownership", nil, func(t *testing.T, p volumePod) {
			p.in("mkdir -m 2770 /v/dir/group", "chown 1000:2000 /v/dir/group", "touch /v/dir/group/inherits", "chmod 4711 /v/dir/from-guest")
			var st, in syscall.Stat_t
			if err := errors.Join(syscall.Stat(filepath.Join(dir, "group"), &st), syscall.Stat(filepath.Join(dir, "group/inherits"), &in)); err != nil {
				t.Fatal(err)
			}
			expect(t, "owner and mode", fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777), "1000:2000 2770")
			expect(t, "group of a file in it", in.Gid, 2000)
		}},
		{"64-bit sizes", nil, func(t *testing.T, p volumePod) {
			expect(t, "size", p.in("stat -c %s /v/dir/big", "printf end | dd of=/v/dir/big bs=1 seek=5368709120 conv=notrunc 2>/dev/null", "tail -c 3 /v/dir/big"), "5368709120\nend")
			info, err := os.Stat(big)
			if err != nil || info.Size() != 5<<30+3 {
				t.Errorf("on the host: %v, %v", info, err)
			}
		}},
		{"long and non-UTF-8 names", nil, func(t *testing.T, p volumePod) {
			expect(t, "content", p.in("cat /v/dir/*nnn", "mv /v/dir/*nnn /v/dir/$(printf '\\377moved')"), "odd\n")
			expect(t, "on the host", read(t, filepath.Join(dir, "\xffmoved")), "odd\n")
		}},
		{"FIFOs between containers", nil, func(t *testing.T, p volumePod) {
			p.in("mkfifo /v/dir/fifo", "(echo through > /v/dir/fifo) </dev/null >/dev/null 2>&1 &")
			expect(t, "what comes out", p.inTwo("cat /v/dir/fifo"), "through\n")
		}},
		{"termination log", at(&runtime.Mount{HostPath: log, ContainerPath: "/dev/termination-log"}), func(t *testing.T, p volumePod) {
			p.in("echo bye > /dev/termination-log")
			expect(t, "on the host", read(t, log), "bye\n")
		}},
	}
}

func updatedKinds(t *testing.T) (kinds []volumeKind) {
	for _, kind := range []string{"configmap", "secret", "projected", "downward-api"} {
		s := newSettings(t, kind)
		point := "/v/" + kind
		kinds = append(kinds, volumeKind{kind, []*runtime.Mount{{HostPath: s.dir, ContainerPath: point, Readonly: true}}, func(t *testing.T, p volumePod) {
			both := "cat " + point + "/a " + point + "/b"
			expect(t, "before", p.in(both), "a1\nb1\n")
			s.update(2)
			expect(t, "after", p.in(both), "a2\nb2\n")
			expect(t, "after, in the other", p.inTwo(both), "a2\nb2\n")
			expect(t, "writing", p.in("touch "+point+"/x 2>/dev/null || echo refused"), "refused\n")
		}})
	}
	return kinds
}

// hostMount mounts something on the host for the length of a test.
func hostMount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func emptyDirKinds(t *testing.T, pods string) []volumeKind {
	needs(t)
	disk, memory := filepath.Join(pods, "volumes/kubernetes.io~empty-dir/disk"), filepath.Join(pods, "volumes/kubernetes.io~empty-dir/memory")
	if err := errors.Join(os.MkdirAll(filepath.Join(disk, "part"), 0o755), os.Chmod(disk, 0o777)); err != nil {
		t.Fatal(err)
	}
	diskPart := filepath.Join(pods, "volume-subpaths/disk/one/0")
	hostMount(t, filepath.Join(disk, "part"), diskPart, "", unix.MS_BIND, "")
	hostMount(t, "tmpfs", memory, "tmpfs", 0, "size=1m")
	if err := errors.Join(os.Chown(memory, 0, 4000), os.Chmod(memory, os.ModeSetgid|0o777), os.Mkdir(filepath.Join(memory, "part"), 0o777)); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(pods, "volume-subpaths/memory/one/0")
	hostMount(t, filepath.Join(memory, "part"), part, "", unix.MS_BIND, "")
	return []volumeKind{
		{"emptyDir on disk", []*runtime.Mount{{HostPath: disk, ContainerPath: "/v/disk"}}, func(t *testing.T, p volumePod) {
			p.in("echo shared > /v/disk/file")
			expect(t, "in the other container", p.inTwo("cat /v/disk/file"), "shared\n")
			expect(t, "on the host, where the kubelet watches its size", read(t, filepath.Join(disk, "file")), "shared\n")
		}},
		{"subPath of an emptyDir on disk", []*runtime.Mount{{HostPath: diskPart, ContainerPath: "/v/diskpart"}}, func(t *testing.T, p volumePod) {
			p.in("mkfifo /v/diskpart/fifo", "(echo through > /v/diskpart/fifo) </dev/null >/dev/null 2>&1 &")
			expect(t, "in the whole", p.inTwo("cat /v/disk/part/fifo"), "through\n")
		}},
		{"emptyDir in memory", []*runtime.Mount{{HostPath: memory, ContainerPath: "/v/memory"}}, func(t *testing.T, p volumePod) {
			p.in("echo shared > /v/memory/file")
			expect(t, "in the other container", p.inTwo("cat /v/memory/file", "stat -f -c %T /v/memory", "stat -c %g:%a /v/memory", "stat -c %g /v/memory/file"),
				"shared\ntmpfs\n4000:2777\n4000\n")
			out := p.in("dd if=/dev/zero of=/v/memory/full bs=64k count=32 2>&1 || true", "stat -c %s /v/memory/full", "rm /v/memory/full")
			if !strings.Contains(out, "No space left") {
				t.Errorf("2 MiB in a volume of 1 MiB: %s", out)
			}
			entries, err := os.ReadDir(memory)
			if err != nil || len(entries) != 1 {
				t.Errorf("the host's memory is used: %v, %v", entries, err)
			}
		}},
		{"subPath of an emptyDir in memory", []*runtime.Mount{{HostPath: part, ContainerPath: "/v/part"}}, func(t *testing.T, p volumePod) {
			p.in("echo part > /v/part/file")
			expect(t, "in the whole", p.inTwo("cat /v/memory/part/file"), "part\n")
		}},
	}
}

func nestedKinds(t *testing.T, pods string) []volumeKind {
	needs(t)
	data, ro, below := volume(t), volume(t), volume(t)
	write(t, filepath.Join(data, "sub/file"), "sub\n")
	write(t, filepath.Join(data, "sub/single"), "single\n")
	write(t, filepath.Join(below, "file"), "below\n")
	if err := os.Mkdir(filepath.Join(ro, "side"), 0o755); err != nil { // nobody can make a place to mount at in there
		t.Fatal(err)
	}
	sub, single := filepath.Join(pods, "volume-subpaths/data/one/0"), filepath.Join(pods, "volume-subpaths/data/one/1")
	hostMount(t, filepath.Join(data, "sub"), sub, "", unix.MS_BIND, "")
	write(t, single, "")
	if err := unix.Mount(filepath.Join(data, "sub/single"), single, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(single, unix.MNT_DETACH) })
	hostMount(t, below, filepath.Join(ro, "below"), "", unix.MS_BIND, "")
	try := "touch %s 2>/dev/null && echo written || echo refused"
	return []volumeKind{
		{"subPath", []*runtime.Mount{{HostPath: sub, ContainerPath: "/v/sub"}, {HostPath: single, ContainerPath: "/v/single"}}, func(t *testing.T, p volumePod) {
			expect(t, "directory and file", p.in("cat /v/sub/file /v/single", "echo new > /v/sub/new"), "sub\nsingle\n")
			expect(t, "in the volume", read(t, filepath.Join(data, "sub/new")), "new\n")
		}},
		{"read-only", []*runtime.Mount{{HostPath: ro, ContainerPath: "/v/ro", Readonly: true}}, func(t *testing.T, p volumePod) {
			expect(t, "above and below", p.in(fmt.Sprintf(try, "/v/ro/x"), fmt.Sprintf(try, "/v/ro/below/x")), "refused\nwritten\n")
		}},
		{"recursively read-only", []*runtime.Mount{{HostPath: ro, ContainerPath: "/v/rro", Readonly: true, RecursiveReadOnly: true}}, func(t *testing.T, p volumePod) {
			expect(t, "above and below", p.in("cat /v/rro/below/file", fmt.Sprintf(try, "/v/rro/x"), fmt.Sprintf(try, "/v/rro/below/x")), "below\nrefused\nrefused\n")
		}},
		{"nested mounts in any order", []*runtime.Mount{
			{HostPath: filepath.Join(data, "sub/single"), ContainerPath: "/v/nest/in/side/file"},
			{HostPath: below, ContainerPath: "/v/nest/in/side"},
			{HostPath: data, ContainerPath: "/v/nest"},
			{HostPath: ro, ContainerPath: "/v/nest/in", Readonly: true},
		}, func(t *testing.T, p volumePod) {
			expect(t, "each in its place", p.in("cat /v/nest/sub/file /v/nest/in/below/file /v/nest/in/side/file", fmt.Sprintf(try, "/v/nest/in/x"), fmt.Sprintf(try, "/v/nest/in/side/y")),
				"sub\nbelow\nsingle\nrefused\nwritten\n")
		}},
	}
}

func propagationKinds(t *testing.T) []volumeKind {
	needs(t)
	top, late := volume(t), volume(t)
	hostMount(t, top, top, "", unix.MS_BIND, "")
	if err := errors.Join(unix.Mount("", top, "", unix.MS_SHARED, ""), os.Mkdir(filepath.Join(top, "late"), 0o755)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(late, "file"), "late\n")
	return []volumeKind{{"HostToContainer propagation", []*runtime.Mount{
		{HostPath: top, ContainerPath: "/v/top", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	}, func(t *testing.T, p volumePod) {
		expect(t, "before", p.in("ls /v/top/late"), "")
		if err := unix.Mount(late, filepath.Join(top, "late"), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the host's new mount", func() bool { return p.in("cat /v/top/late/file 2>/dev/null || true") == "late\n" })
		eventually(t, "the host's unmounting", func() bool { return unix.Unmount(filepath.Join(top, "late"), 0) == nil })
		eventually(t, "the mount to be gone", func() bool { return p.in("ls /v/top/late") == "" })
	}}}
}

// between has a container talk to another one's Unix socket in a volume, and ask for what that one has locked.
func between(t *testing.T, d *daemon, pod string, config *runtime.PodSandboxConfig) {
	mount := &runtime.Mount{HostPath: volume(t), ContainerPath: "/work"}
	server := d.launch(pod, config, guestSide(t, "server", "TestBetweenInGuest", "/work", mount))
	client := guestSide(t, "client", "TestBetweenInGuest", "/work", mount)
	client.Envs = append(client.Envs, &runtime.KeyValue{Key: "CLIENT", Value: []byte("1")})
	if out := d.run(pod, config, client); !strings.Contains(out, "--- PASS: TestBetweenInGuest") {
		t.Errorf("client: %s", out)
	}
	status := d.wait(server)
	if out := d.logOf(status, "stdout"); !strings.Contains(out, "--- PASS: TestBetweenInGuest") {
		t.Errorf("server: %s", out)
	}
}

// TestBetweenInGuest is both ends of a Unix socket in a volume and of a lock, each in a container of its own.
func TestBetweenInGuest(t *testing.T) {
	dir := os.Getenv(guestDir)
	if dir == "" {
		t.Skip("it runs inside a guest, started by TestVolumeKinds")
	}
	path := filepath.Join(dir, "socket")
	locked, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	record := func(how int) error {
		return unix.FcntlFlock(locked.Fd(), how, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1})
	}
	if os.Getenv("CLIENT") == "" {
		if err := errors.Join(unix.Flock(int(locked.Fd()), unix.LOCK_EX), record(unix.F_SETLK)); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1)) // the end of the client's questions
		return
	}
	var conn net.Conn
	eventually(t, "the server", func() (ok bool) {
		conn, err = net.Dial("unix", path)
		return err == nil
	})
	defer conn.Close()
	b := make([]byte, 5)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := unix.Flock(int(locked.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a lock that the other has: %v", err)
	}
	if err := record(unix.F_SETLK); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a record that the other has locked: %v", err)
	}
	conn.Close()
	if err := errors.Join(unix.Flock(int(locked.Fd()), unix.LOCK_EX), record(unix.F_SETLKW)); err != nil {
		t.Errorf("locks that the other has given back: %v", err)
	}
}

// loopDevice makes a block device of the host.
func loopDevice(t *testing.T, mib int64) string {
	t.Helper()
	needs(t)
	file := filepath.Join(t.TempDir(), "disk")
	write(t, file, "")
	if err := os.Truncate(file, mib<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}

// TestBlockVolumes: block devices of the host are disks of the guest, raw; with a file system on them they are shared as
// any directory.
func TestBlockVolumes(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	raw, other, formatted := loopDevice(t, 16), loopDevice(t, 16), loopDevice(t, 16)
	if out, err := exec.Command("mkfs.ext4", "-q", formatted).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "mnt")
	hostMount(t, formatted, dir, "ext4", 0, "")
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("from the host"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}

	pod, config := d.runPod("block", nil)
	c := mounted(shell("main", forever), &runtime.Mount{HostPath: dir, ContainerPath: "/mnt/fs"})
	c.Devices = []*runtime.Device{
		{HostPath: raw, ContainerPath: "/dev/xvda", Permissions: "rwm"},
		{HostPath: other, ContainerPath: "/dev/data/ro", Permissions: "r"},
	}
	id := d.launch(pod, config, c)
	expect(t, "raw", d.execSync(id, "sh", "-c", script("head -c 13 /dev/xvda", "blockdev --getsize64 /dev/xvda 2>/dev/null || cat /dev/xvda | wc -c")), "from the host16777216\n")
	d.execSync(id, "sh", "-c", script("printf 'from the guest' | dd of=/dev/xvda bs=1M seek=1 conv=fsync 2>/dev/null", "echo here > /mnt/fs/file"))
	expect(t, "read-only", d.execSync(id, "sh", "-c", "(echo x > /dev/data/ro) 2>/dev/null || echo refused"), "refused\n")
	b := make([]byte, 14)
	if _, err := unix.Pread(directFD(t, raw), b[:], 1<<20); err != nil || string(b) != "from the guest" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	expect(t, "on the host's file system", read(t, filepath.Join(dir, "file")), "here\n")

	// The device goes with its last container.
	second := shell("second", forever)
	second.Devices = c.Devices[:1]
	again := d.launch(pod, config, second)
	expect(t, "in a second container", d.execSync(again, "sh", "-c", "dd if=/dev/xvda bs=1M skip=1 count=1 2>/dev/null | head -c 14"), "from the guest")
	// Firecracker leaves a device of one sector in a disk's place.
	disks := func() string {
		return d.execSync(again, "sh", "-c", "cat /sys/block/[sv]d*/size | grep -cvx 1")
	}
	before := disks()
	if _, err := d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if after := disks(); after == before {
		t.Errorf("the guest has %s disks, as before its container with one was removed", strings.TrimSpace(after))
	}
	expect(t, "what the second still has", d.execSync(again, "head", "-c", "13", "/dev/xvda"), "from the host")
	d.stopAndRemove(pod)
}

// directFD reads a device past what the host has cached of it.
func directFD(t *testing.T, path string) int {
	t.Helper()
	if err := exec.Command("blockdev", "--flushbufs", path).Run(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
