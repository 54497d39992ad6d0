package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// onSmallDisk starts a daemon whose root is a file system of that many MiB.
func onSmallDisk(t *testing.T, mib int) *daemon {
	t.Helper()
	return startPrepared(t, "", func(d *daemon) {
		if err := unix.Mount("tmpfs", d.scope.Root, "tmpfs", 0, fmt.Sprintf("mode=0711,size=%dm", mib)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(d.scope.Root, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
	})
}

// leave fills the daemon's disk until only so many bytes are free; the file that does it is returned.
func (d *daemon) leave(free int64) string {
	d.t.Helper()
	path := filepath.Join(d.scope.Root, "filler")
	var fs unix.Statfs_t
	if err := unix.Statfs(d.scope.Root, &fs); err != nil {
		d.t.Fatal(err)
	}
	var had int64
	if info, err := os.Stat(path); err == nil {
		had = info.Size()
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	size := had + int64(fs.Bavail)*int64(fs.Bsize) - free
	if size < had {
		err = f.Truncate(size)
	} else {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return path
}

// TestPullOnFullDisk: wherever in a pull the space ends, the error says so and nothing is registered; with room the
// same pull works.
func TestPullOnFullDisk(t *testing.T) {
	d := onSmallDisk(t, 64)
	room := d.imageBytes()
	failed := 0
	for free := int64(0); ; free += 256 << 10 {
		filler := d.leave(free)
		resp, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec(testImage)})
		if err == nil {
			t.Logf("%d pulls failed before %d KiB were enough for %s", failed, free>>10, resp.ImageRef)
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			break
		}
		failed++
		refused(t, fmt.Sprintf("a pull with %d KiB free", free>>10), err, codes.ResourceExhausted, "full", "remove images")
		list, err := d.images.ListImages(d.call(), &runtime.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "images after a pull that failed", len(list.Images), 0)
		if t.Failed() || free > 48<<20 {
			t.FailNow()
		}
	}
	if failed < 2 {
		t.Errorf("only %d pulls failed", failed)
	}
	// What the pull that worked left is used, and freed.
	if _, err := d.images.RemoveImage(d.call(), &runtime.RemoveImageRequest{Image: spec(testImage)}); err != nil {
		t.Fatal(err)
	}
	if after := d.imageBytes(); after > room+1<<20 {
		t.Errorf("images use %d bytes after their removal, %d before", after, room)
	}
}

// TestPodOnFullDisk: a disk that fills up while a pod runs gives its writers an error and nobody else, whether they write to the
// root file system, a volume or an emptyDir on the disk; the pod can be used, stopped and removed all the same, which makes room.
func TestPodOnFullDisk(t *testing.T) {
	d := onSmallDisk(t, 128) // Firecracker's kernel is on it too, and that has 51 MiB
	d.pull(testImage)
	filler := d.leave(0)
	_, err := d.tryPod("no-room")
	refused(t, "a pod on a full disk", err, codes.ResourceExhausted)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.nothing("after a pod that had no room")

	neighbour, neighbours := d.runPod("neighbour", nil)
	other := d.launch(neighbour, neighbours, shell("main", forever))
	pod, config := d.runPod("full", func(c *runtime.PodSandboxConfig) { c.LogDirectory = filepath.Join(d.scope.State, "logs") })
	volumes := shell("main", forever)
	for at, dir := range map[string]string{"/v/host": "volume", "/v/empty": "pods/uid/volumes/kubernetes.io~empty-dir/disk"} {
		path := filepath.Join(d.scope.Root, dir)
		if err := os.MkdirAll(path, 0o777); err != nil {
			t.Fatal(err)
		}
		volumes.Mounts = append(volumes.Mounts, &runtime.Mount{HostPath: path, ContainerPath: at})
	}
	main := d.launch(pod, config, volumes)
	writer := d.launch(pod, config, shell("writer", "dd if=/dev/urandom of=/big bs=1M count=160 conv=fsync; exit $?"))
	s := d.wait(writer)
	if said := d.logOf(s, "stderr"); s.ExitCode == 0 || !strings.Contains(said, "I/O error") && !strings.Contains(said, "nput/output error") {
		t.Errorf("the writer ended with %d and said %q", s.ExitCode, said)
	}
	for _, volume := range []string{"/v/host", "/v/empty"} {
		said := d.execSync(main, "sh", "-c", "dd if=/dev/zero of="+volume+"/big bs=64k count=512 conv=fsync 2>&1 || echo failed; rm "+volume+"/big; ls "+volume)
		if !strings.Contains(said, "No space left") || !strings.HasSuffix(said, "failed\n") {
			t.Errorf("writing to %s: %s", volume, said)
		}
	}
	for pod, main := range map[string]string{pod: main, neighbour: other} {
		expect(t, "pod", d.sandboxState(pod), runtime.PodSandboxState_SANDBOX_READY)
		expect(t, "exec on a full disk", d.execSync(main, "echo", "alive"), "alive\n")
	}
	_, err = d.tryPod("no-room")
	if code := status.Code(err); code != codes.ResourceExhausted {
		t.Errorf("a second pod on a full disk: code %v: %v", code, err)
	}
	// No space is left for a record, and yet:
	if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: main, Timeout: 30}); err != nil {
		t.Errorf("stop container on a full disk: %v", err)
	}
	expect(t, "state", d.status(main).State, runtime.ContainerState_CONTAINER_EXITED)
	d.stopAndRemove(pod)
	expect(t, "exec in the other pod", d.execSync(other, "sh", "-c", "echo more >/file && sync && cat /file"), "more\n")
	d.stopAndRemove(neighbour)
	d.nothing("after a full disk")
	again, _ := d.runPod("no-room", nil)
	d.stopAndRemove(again)
}
