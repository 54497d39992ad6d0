package cli

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPrune(t *testing.T) {
	ctr := func(id, pod, image string, state runtime.ContainerState) *runtime.Container {
		return &runtime.Container{Id: id, PodSandboxId: pod, ImageId: image, Metadata: &runtime.ContainerMetadata{Name: id}, State: state}
	}
	img := func(id string, pinned bool, tags ...string) *runtime.Image {
		return &runtime.Image{Id: id, RepoTags: tags, Size: 1 << 20, Pinned: pinned}
	}
	d := &daemon{
		pods: []*runtime.PodSandbox{pod("up", "web", true), pod("down", "old", false)},
		containers: []*runtime.Container{
			ctr("running", "up", "used", runtime.ContainerState_CONTAINER_RUNNING),
			ctr("created", "up", "used", runtime.ContainerState_CONTAINER_CREATED),
			ctr("ended", "up", "unused", runtime.ContainerState_CONTAINER_EXITED),
			ctr("dead", "down", "unused", runtime.ContainerState_CONTAINER_EXITED),
		},
		images: []*runtime.Image{img("used", false, "a"), img("mounted", false, "volume"), img("pinned", true, "pause"), img("unused", false, "old:1", "old:2")},
	}
	run := start(t, d)
	for _, args := range [][]string{{"prune"}, {"prune", "--yes", "--dry-run"}} {
		if _, err := run(args...); err == nil || !strings.Contains(err.Error(), "--dry-run") || len(d.calls) > 0 {
			t.Errorf("%v: %v, %v", args, err, d.calls)
		}
	}
	out, err := run("prune", "--dry-run")
	if err != nil || len(d.calls) > 0 || len(strings.Split(strings.TrimSpace(out), "\n")) != 4 || !strings.Contains(out, "old:1") {
		t.Errorf("%v, %v\n%s", err, d.calls, out)
	}
	out, err = run("prune", "--yes", "-o", "json")
	want := []string{"stop pod down", "remove pod down", "remove container ended", "remove image unused"}
	if err != nil || !slices.Equal(d.calls, want) {
		t.Errorf("%v, calls %v", err, d.calls)
	}
	var removed []prunable
	if err := json.Unmarshal([]byte(out), &removed); err != nil || len(removed) != 3 || removed[2].Bytes != 1<<20 {
		t.Errorf("%v\n%s", err, out)
	}

	// One failure keeps nothing else from being removed, and what was not removed is not listed.
	d.pods, d.containers, d.calls = nil, nil, nil
	d.images = append(d.images, img("other", false))
	d.keep = "unused"
	out, err = run("prune", "--yes", "-o", "json")
	if err == nil || !strings.Contains(err.Error(), "image old:1: ") || !strings.Contains(out, `"other"`) || strings.Contains(out, "old:1") {
		t.Errorf("%v\n%s", err, out)
	}
	d.images = nil
	if out, err := run("prune", "--yes", "-o", "json"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("nothing to prune: %v %s", err, out)
	}
}
