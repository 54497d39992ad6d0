package integration

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func spec(image string) *runtime.ImageSpec { return &runtime.ImageSpec{Image: image} }

// TestImageService: pull in all forms, list, status, removal that frees the disk, archives.
func TestImageService(t *testing.T) {
	d := startDaemon(t, "")
	before := d.imageBytes()

	// Concurrent pulls of one image answer the same.
	var wg sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		wg.Go(func() {
			resp, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec(testImage)})
			if err != nil {
				t.Errorf("pull: %v", err)
				return
			}
			ids[i] = resp.ImageRef
		})
	}
	wg.Wait()
	for _, id := range ids {
		expect(t, "image of concurrent pulls", id, ids[0])
	}
	d.pull("registry.test/pistis/index:latest")
	status, err := d.images.ImageStatus(d.call(), &runtime.ImageStatusRequest{Image: spec("registry.test/pistis/user:name"), Verbose: true})
	if err != nil || status.Image != nil {
		t.Errorf("status of an image that is not there: %v, %v", status, err)
	}
	d.pull("registry.test/pistis/user:name")
	status, err = d.images.ImageStatus(d.call(), &runtime.ImageStatusRequest{Image: spec("registry.test/pistis/user:name"), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "user of the image", status.Image.GetUsername(), "tester")
	if len(status.Info) == 0 || status.Image.Size == 0 || len(status.Image.RepoDigests) == 0 {
		t.Errorf("image status lacks something: %v", status)
	}
	list, err := d.images.ListImages(d.call(), &runtime.ListImagesRequest{Filter: &runtime.ImageFilter{Image: spec(testImage)}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "images of that name", len(list.Images), 1)

	archive := filepath.Join(t.TempDir(), "image.tar")
	if _, stderr, code := d.pistis("export", "-f", archive, testImage); code != 0 {
		t.Fatalf("export: %s", stderr)
	}
	for range 2 { // the second time there is nothing to do
		for _, image := range []string{testImage, "registry.test/pistis/index:latest", "registry.test/pistis/user:name"} {
			if _, err := d.images.RemoveImage(d.call(), &runtime.RemoveImageRequest{Image: spec(image)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := d.imageBytes(); after > before+1<<20 {
		t.Errorf("images use %d bytes after their removal, %d before", after, before)
	}
	if _, stderr, code := d.pistis("import", archive); code != 0 {
		t.Fatalf("import: %s", stderr)
	}
	pod, config := d.runPod("imported", nil)
	expect(t, "output of an imported image", d.run(pod, config, shell("main", "echo works")), "works\n")
}

func (d *daemon) imageBytes() uint64 {
	d.t.Helper()
	resp, err := d.images.ImageFsInfo(d.call(), &runtime.ImageFsInfoRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	if len(resp.ImageFilesystems) == 0 || len(resp.ContainerFilesystems) == 0 {
		d.t.Fatalf("file systems are missing: %v", resp)
	}
	return resp.ImageFilesystems[0].UsedBytes.GetValue()
}

// TestBadImages: each pull fails with a code and a sentence, and registers nothing.
func TestBadImages(t *testing.T) {
	d := startDaemon(t, "")
	for _, c := range []struct {
		image string
		code  codes.Code
		words []string
	}{
		{"UPPER CASE", codes.InvalidArgument, []string{"UPPER CASE"}},
		{"registry.test/no/such:1", codes.NotFound, []string{"registry.test/no/such:1"}},
		{"registry.test/pistis/arm64:latest", codes.FailedPrecondition, []string{"arm64", "amd64"}},
		{"registry.test/pistis/index:foreign", codes.FailedPrecondition, []string{"amd64"}},
		{"registry.test/pistis/corrupt:flipped", codes.DataLoss, []string{"digest"}},
		{"registry.test/pistis/corrupt:diffid", codes.DataLoss, nil},
		{"registry.test/pistis/corrupt:missing", codes.NotFound, nil},
	} {
		_, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec(c.image)})
		refused(t, c.image, err, c.code, c.words...)
	}
	list, err := d.images.ListImages(d.call(), &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list.Images {
		t.Errorf("registered: %v", i)
	}
	matches, err := filepath.Glob("/pistis-escape-*")
	if err != nil || len(matches) > 0 {
		t.Errorf("a layer wrote outside of its root: %v %v", matches, err)
	}
}

// TestLayers: whiteouts, opaque directories and odd files look in the guest as they should.
func TestLayers(t *testing.T) {
	d := startDaemon(t, "")
	d.pull("registry.test/pistis/layers:latest")
	pod, config := d.runPod("layers", nil)
	ctr := shell("main", script("cd /layers", "find . | sort", "cat changed again twin dir-to-file file-to-dir/inside", "ls / | grep -c lost+found || true"))
	ctr.Image = spec("registry.test/pistis/layers:latest")
	const tree = ".\n./again\n./changed\n./dir-to-file\n./file-to-dir\n./file-to-dir/inside\n./kept\n./kept/new\n./kept/old\n./opaque\n./opaque/new\n./twin\n"
	expect(t, "the merged tree", d.run(pod, config, ctr), tree+"new\nsecond\nsecond\na file now\na directory now\n0\n")

	d.pull("registry.test/pistis/entrypoint:latest")
	entry := shell("entry", "")
	entry.Image, entry.Command = spec("registry.test/pistis/entrypoint:latest"), nil
	expect(t, "entrypoint and command", d.run(pod, config, entry), "entrypoint cmd\n")
	args := shell("args", "")
	args.Image, args.Command, args.Args = spec("registry.test/pistis/entrypoint:latest"), nil, []string{"other"}
	expect(t, "entrypoint and arguments", d.run(pod, config, args), "entrypoint other\n")
}

// TestPistisCommand: the operator's command from pull to removal.
func TestPistisCommand(t *testing.T) {
	d := startDaemon(t, "")
	must := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := d.pistis(args...)
		if code != 0 {
			t.Fatalf("pistis %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
		}
		return stdout
	}
	logs := filepath.Join(d.scope.Root, "logs")
	out, stderr, code := d.pistis("run", "--log-dir", logs, "-e", "WORD=some-word", testImage, "sh", "-c", "echo $WORD; exit 9")
	expect(t, "exit code", code, 9)
	expect(t, "output", out, "some-word\n")
	if strings.Contains(stderr, "panic") {
		t.Error(stderr)
	}
	name := strings.TrimSpace(must("run", "--log-dir", logs, "-d", "--name", "web", "--memory", "128Mi", "--cpus", "0.5", testImage))
	expect(t, "name", name, "web")
	for _, command := range []string{"ps", "pods", "images", "stats"} {
		for _, format := range [][]string{nil, {"-o", "json"}} {
			if out := must(append([]string{command}, format...)...); len(lines(out)) < 2 {
				t.Errorf("pistis %s shows nothing: %s", command, out)
			}
		}
	}
	expect(t, "exec", must("exec", "web", "echo", "-n", "in the pod"), "in the pod")
	if _, _, code := d.pistis("exec", "web", "sh", "-c", "exit 6"); code != 6 {
		t.Errorf("exit code of an exec: %d, want 6", code)
	}
	if log := must("logs", "web"); !strings.Contains(log, "serving http") {
		t.Errorf("log: %s", log)
	}
	if doc := must("inspect", "web"); !strings.Contains(doc, "\"vm\"") {
		t.Errorf("inspect: %s", doc)
	}
	if _, stderr, code := d.pistis("rm", "web"); code == 0 || !strings.Contains(stderr, "-f") {
		t.Errorf("a running pod was removed without -f: %s", stderr)
	}
	must("stop", "web")
	must("rm", "web")
	must("rmi", testImage)
	if _, stderr, code := d.pistis("exec", "web", "true"); code != 1 || !strings.Contains(stderr, "web") {
		t.Errorf("exec in a pod that is gone: %d %s", code, stderr)
	}
	if entries, err := os.ReadDir(logs); err == nil && len(entries) > 0 {
		t.Errorf("log directories are left: %v", entries)
	}
}
