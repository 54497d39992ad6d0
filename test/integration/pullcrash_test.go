package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPullFailpoints: a daemon that dies anywhere on the way of an image leaves an image that is whole, or none; the next
// one goes on from what is there, and frees the disk of it in the end.
func TestPullFailpoints(t *testing.T) {
	layer := []string{"layer.written", "layer.named"}
	for form, points := range map[string][]string{
		"vm":   slices.Concat([]string{"image.downloaded"}, layer, []string{"image.prepared", "image.registered"}),
		"runc": layer, // the rest is the same
	} {
		t.Run(form, func(t *testing.T) {
			d := startPrepared(t, "", func(d *daemon) {
				d.configure(func(s string) string {
					return strings.Replace(s, `default_handler = "vm"`, "default_handler = \""+form+"\"", 1)
				})
			})
			before := d.imageBytes()
			for _, point := range points {
				d.restart(point, "kill9")
				_, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec(testImage)})
				refused(t, point, err, codes.Unavailable)
				d.crashed("", "")
				if point == "image.registered" {
					status, err := d.images.ImageStatus(d.call(), &runtime.ImageStatusRequest{Image: spec(testImage)})
					if err != nil || status.Image == nil {
						t.Errorf("the image that was registered: %v, %v", status, err)
					}
				} else {
					d.noImages("after " + point)
				}
				d.pull(testImage)
				checkForms(t, d, point)
				if _, err := d.images.RemoveImage(d.call(), &runtime.RemoveImageRequest{Image: spec(testImage)}); err != nil {
					t.Fatal(err)
				}
				if after := d.imageBytes(); after > before+1<<20 {
					t.Errorf("%s: images use %d bytes after their removal, %d before", point, after, before)
				}
			}
		})
	}
}

// checkForms: every layer has its final name, and nothing else is there.
func checkForms(t *testing.T, d *daemon, point string) {
	t.Helper()
	found := 0
	for _, dir := range []string{"layers", "dirs"} {
		entries, err := os.ReadDir(filepath.Join(d.scope.Root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			switch {
			case e.Name() == "lock" || strings.HasPrefix(e.Name(), "scratch"):
			case strings.HasPrefix(e.Name(), "tmp-"):
				t.Errorf("%s: left of a layer that was not finished: %s", point, e.Name())
			default:
				found++
			}
		}
	}
	if found == 0 {
		t.Errorf("%s: no layer was made", point)
	}
}

// TestDamagedDisk: what a disk has lost of an image while the daemon was down is pulled again, and containers that run
// from it go on.
func TestDamagedDisk(t *testing.T) {
	d := startDaemon(t, "")
	if reason := notReady(d, "runc"); reason != "" {
		t.Skipf("SKIPPED, not tested: handler runc: %s", reason)
	}
	d.handler = "runc"
	d.pull(testImage)
	pod, config := d.runPod("running", nil)
	running := d.launch(pod, config, shell("c", forever))
	d.stop()
	blobs, err := filepath.Glob(filepath.Join(d.scope.Root, "images/content/blobs/sha256/*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(blobs, err)
	}
	for _, blob := range blobs {
		if err := os.Truncate(blob, 10); err != nil {
			t.Fatal(err)
		}
	}
	d.start()
	d.noImages("after its blobs were cut")
	if _, err := d.images.RemoveImage(d.call(), &runtime.RemoveImageRequest{Image: spec(testImage)}); err != nil {
		t.Error(err)
	}
	expect(t, "a container of the image", d.execSync(running, "cat", "/etc/hostname"), "running\n")
	d.pull(testImage)
	expect(t, "a new container", d.run(pod, config, shell("new", "echo works")), "works\n")
	expect(t, "a container of the image", d.execSync(running, "echo", "alive"), "alive\n")
	d.stopAndRemove(pod)
}
