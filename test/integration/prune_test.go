package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPrune: what has ended and what nobody uses goes, the rest stays; and wiping, which takes all.
func TestPrune(t *testing.T) {
	d := startDaemon(t, "")
	d.configure(func(s string) string {
		return strings.Replace(s, "[image.mirrors]", "[image]\npinned = [\"registry.test/pistis/index*\"]\n[image.mirrors]", 1)
	})
	d.stop()
	d.start()
	if reason := notReady(d, "runc"); reason != "" {
		t.Skipf("SKIPPED, not tested: handler runc: %s", reason)
	}
	d.handler = "runc"
	const pinned = "registry.test/pistis/index:latest"
	d.pull(testImage)
	d.pull(pinned)
	volume := volumeImage(d)
	pod, config := d.runPod("up", nil)
	running := d.launch(pod, config, mounted(shell("c", forever), imageVolume("/data", volume, ""), imageVolume("/users", volume, "etc")))
	d.wait(d.launch(pod, config, shell("ended", "true")))
	stopped, _ := d.runPod("down", nil)
	if _, err := d.StopPodSandbox(d.call(), &runtime.StopPodSandboxRequest{PodSandboxId: stopped}); err != nil {
		t.Fatal(err)
	}
	kinds := func(args ...string) []string {
		t.Helper()
		out, stderr, code := d.pistis(append([]string{"prune"}, args...)...)
		if code != 0 {
			t.Fatalf("prune %v: %s", args, stderr)
		}
		var kinds []string
		for _, line := range lines(out)[1:] {
			kinds = append(kinds, strings.Fields(line)[0])
		}
		return kinds
	}
	if _, stderr, code := d.pistis("prune"); code == 0 || !strings.Contains(stderr, "--yes") {
		t.Errorf("prune without a word: %s", stderr)
	}
	for _, args := range []string{"--dry-run", "--yes"} {
		if got := kinds(args); !slices.Equal(got, []string{"pod", "container"}) {
			t.Errorf("prune %s: %v", args, got)
		}
	}
	checkImageVolumes(d, running)
	d.stopAndRemove(pod)
	if got := kinds("--yes"); !slices.Equal(got, []string{"image", "image"}) {
		t.Errorf("prune of images: %v", got)
	}
	list, err := d.images.ListImages(d.call(), &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Images) != 1 || !list.Images[0].Pinned || !slices.Contains(list.Images[0].RepoTags, pinned) {
		t.Errorf("images that stay: %v", list.Images)
	}

	// Wiping, with a pod that runs and an image.
	d.pull(testImage)
	d.runPod("wiped", nil)
	d.stop()
	wipe := func(args ...string) string {
		args = append([]string{"wipe", "--config", d.config}, args...)
		out, _ := exec.CommandContext(t.Context(), binary("pistis"), args...).CombinedOutput()
		return string(out)
	}
	if out := wipe("--images"); !strings.Contains(out, "--yes") {
		t.Errorf("wipe without a word: %s", out)
	}
	out := wipe("--images", "--yes")
	left, err := os.ReadDir(d.scope.Root)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		if name := entry.Name(); name != "lock" && name != "guest" {
			t.Errorf("left after wiping: %s\n%s", filepath.Join(d.scope.Root, name), out)
		}
	}
	d.start()
	d.noImages("after wiping")
	d.nothing("after wiping")
}
