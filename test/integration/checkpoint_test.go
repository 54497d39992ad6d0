package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// counting writes numbers to a file for ever, and has changed its root otherwise.
const counting = "rm /etc/group; i=0; while :; do i=$((i+1)); echo $i > /counter; sleep 1; done"

// TestCheckpoint makes checkpoints where criu works, and wants its reasons where it does not. A container goes on either way.
func TestCheckpoint(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		pod, config := d.runPod("checkpointed", nil)
		id := d.launch(pod, config, shell("counting", counting))
		dir := t.TempDir()
		checkpoint := func(id, location string) error {
			_, err := d.CheckpointContainer(d.call(), &runtime.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: 120})
			return err
		}
		taken := filepath.Join(dir, "taken")
		if err := os.WriteFile(taken, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, "a file that exists", checkpoint(id, taken), codes.AlreadyExists, taken)
		refused(t, "a relative location", checkpoint(id, "a.tar"), codes.InvalidArgument, "not absolute")
		refused(t, "a missing directory", checkpoint(id, filepath.Join(dir, "none", "a.tar")), codes.InvalidArgument, "directory")
		refused(t, "a container that does not run", checkpoint(d.create(pod, config, shell("created", forever)), filepath.Join(dir, "b.tar")), codes.FailedPrecondition, "created")

		archive := filepath.Join(dir, "a.tar")
		err := checkpoint(id, archive)
		works := err == nil
		switch report, checkErr := exec.Command("criu", "check").CombinedOutput(); {
		case errors.Is(checkErr, exec.ErrNotFound):
			refused(t, "a checkpoint without criu", err, codes.FailedPrecondition, "install criu")
		case err != nil && d.handler == "crun" && strings.Contains(err.Error(), "unknown command"):
			refused(t, "a checkpoint of a crun without them", err, codes.Unimplemented, "built without checkpoints")
		case checkErr != nil:
			refused(t, "a checkpoint that criu cannot make", err, codes.FailedPrecondition, "criu cannot")
			t.Logf("refused: %v; criu check: %s", err, report)
		case err != nil:
			t.Errorf("%v\n%s", err, d.logs())
		default:
			checkArchive(t, archive, id)
		}
		before := counter(t, d, id)
		eventually(t, "the container to go on", func() bool { return counter(t, d, id) > before })
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 && !works || len(left) > 2 {
			t.Errorf("left beside the archive: %v, %v", left, err)
		}
		if err := filepath.WalkDir(d.scope.Root, func(path string, e fs.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(e.Name(), "work-") {
				t.Errorf("left: %s", path)
			}
			return nil // what a container changes may vanish
		}); err != nil {
			t.Error(err)
		}
		d.stopAndRemove(pod)
		d.nothing("after the checkpoint")
		if !works {
			t.Skip("SKIPPED, not tested: the archive of a checkpoint: criu makes none here")
		}
	})
}

// counter is how far the container has got.
func counter(t *testing.T, d *daemon, id string) int {
	t.Helper()
	n, _ := strconv.Atoi(strings.TrimSpace(d.execSync(id, "cat", "/counter"))) // empty for the moment in which it is written
	return n
}

// checkArchive wants what tools look for in the archive of a checkpoint.
func checkArchive(t *testing.T, path, id string) {
	t.Helper()
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, data)
	for _, name := range []string{"checkpoint/", "checkpoint/inventory.img", "checkpoint/pages-1.img", "checkpoint/descriptors.json", "dump.log", "stats-dump", "status.dump"} {
		if _, ok := files[name]; !ok {
			t.Errorf("no %s in the archive", name)
		}
	}
	var config struct{ ID, Name, Runtime string }
	if err := json.Unmarshal(files["config.dump"], &config); err != nil || config.ID != id || config.Name != "counting" {
		t.Errorf("config.dump: %+v, %v", config, err)
	}
	var spec struct{ Annotations map[string]string }
	if err := json.Unmarshal(files["spec.dump"], &spec); err != nil || spec.Annotations["io.kubernetes.cri.sandbox-name"] != "checkpointed" {
		t.Errorf("spec.dump: %+v, %v", spec, err)
	}
	root := untar(t, files["rootfs-diff.tar"])
	if _, ok := root["etc/.wh.group"]; !ok || len(root["counter"]) == 0 {
		t.Errorf("rootfs-diff.tar: %q", root)
	}
}

// untar reads an archive into memory.
func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for archive := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
}
