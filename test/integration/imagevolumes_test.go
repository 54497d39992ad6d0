package integration

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

func imageVolume(at, image, sub string) *runtime.Mount {
	return &runtime.Mount{ContainerPath: at, Readonly: true, Image: spec(image), ImageSubPath: sub}
}

// TestImageVolumes: images as volumes of containers on the host's kernel.
func TestImageVolumes(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		volume := volumeImage(d)
		pod, config := d.runPod("volumes", nil)
		c := mounted(shell("c", forever), imageVolume("/data", volume, ""), imageVolume("/users", volume, "etc"))
		id := d.launch(pod, config, c)
		checkImageVolumes(d, id)
		expect(t, "owner", d.execSync(id, "stat", "-c", "%u", "/data/etc/passwd"), "0\n")

		// It is kept while it is used: without its name, and by the next daemon.
		if _, err := d.images.RemoveImage(d.call(), &runtime.RemoveImageRequest{Image: spec(volume)}); err != nil {
			t.Fatal(err)
		}
		d.kill()
		d.start()
		checkImageVolumes(d, id)
		mounts := d.status(id).Mounts
		if len(mounts) != 2 || mounts[1].GetImage().GetImage() != volume || mounts[1].ImageSubPath != "etc" {
			t.Errorf("mounts in the status: %v", mounts)
		}
		d.stopAndRemove(pod)
		d.nothing("after the volumes")

		d.pull(volume)
		checkImageVolumesOfUsers(t, d, volume)
		checkRefusedImageVolumes(t, d, volume)
	})
}

// volumeImage pulls an image that is not the containers' own.
func volumeImage(d *daemon) string {
	d.t.Helper()
	const volume = "registry.test/pistis/user:name"
	d.pull(volume)
	return volume
}

func checkImageVolumes(d *daemon, id string) {
	d.t.Helper()
	for _, path := range []string{"/data/etc/passwd", "/users/passwd"} {
		if out := d.execSync(id, "cat", path); !strings.Contains(out, "tester:") {
			d.t.Errorf("%s: %q", path, out)
		}
	}
	expect(d.t, "writing", d.execSync(id, "sh", "-c", "touch /data/new 2>/dev/null || touch /users/new 2>/dev/null || echo refused"), "refused\n")
	expect(d.t, "its programs", d.execSync(id, "sh", "-c", "/data/bin/busybox true 2>/dev/null || echo refused"), "refused\n")
}

// checkImageVolumesOfUsers: root in a user namespace sees the files as its own.
func checkImageVolumesOfUsers(t *testing.T, d *daemon, volume string) {
	ids := []*runtime.IDMapping{{HostId: 300000, Length: 65536}}
	users := &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
	pod, config := d.runPod("users", func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	})
	mount := imageVolume("/data", volume, "etc")
	mount.UidMappings, mount.GidMappings = ids, ids
	c := mounted(shell("c", "stat -c %u /data/passwd"), mount)
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	expect(t, "owner in a user namespace", d.run(pod, config, c), "0\n")
	d.stopAndRemove(pod)
	d.nothing("after the volumes of users")
}

func checkRefusedImageVolumes(t *testing.T, d *daemon, volume string) {
	pod, config := d.runPod("refused", nil)
	shared := imageVolume("/data", volume, "")
	shared.Propagation = runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
	writable := imageVolume("/data", volume, "")
	writable.Readonly = false
	tests := []struct {
		mount *runtime.Mount
		code  codes.Code
		text  string
	}{
		{imageVolume("/data", "registry.test/pistis/absent:1", ""), codes.NotFound, crierrors.ErrImageVolumeMountFailed.Error()},
		{imageVolume("/data", volume, "no/such"), codes.NotFound, crierrors.ErrImageVolumeMountFailed.Error()},
		{imageVolume("/data", volume, "etc/passwd"), codes.InvalidArgument, crierrors.ErrImageVolumeMountFailed.Error()},
		{imageVolume("/data", volume, "../etc"), codes.InvalidArgument, "create container"},
		{shared, codes.InvalidArgument, "create container"},
		{writable, codes.InvalidArgument, "create container"},
	}
	for _, test := range tests {
		_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: mounted(shell("c", "true"), test.mount)})
		if status.Code(err) != test.code || !strings.HasPrefix(status.Convert(err).Message(), test.text) {
			t.Errorf("%v: got %v, want %s with %q at the beginning", test.mount, err, test.code, test.text)
		}
	}
	d.stopAndRemove(pod)
	d.nothing("after refused volumes")
}

// TestImageVolumesInVM: a microVM pod gets them as shares.
func TestImageVolumesInVM(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	volume := volumeImage(d)
	pod, config := d.runPod("volumes", nil)
	id := d.launch(pod, config, mounted(shell("c", forever), imageVolume("/data", volume, ""), imageVolume("/users", volume, "etc")))
	checkImageVolumes(d, id)
	d.stopAndRemove(pod)
}
