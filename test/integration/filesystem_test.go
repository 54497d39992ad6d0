package integration

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/posix"
)

const (
	// posixEvery is an environment variable: how many cases there are for each that is done; 1 does all.
	posixEvery = "PISTIS_TEST_POSIX_EVERY"
	// resultsFile is what the guest writes beside the directory that it works in.
	resultsFile = "results"

	exercises     = 3
	exerciseSteps = 300
	// thorough is how much longer they are when all cases are done.
	thorough = 3
)

// differences are the cases in which a volume in a guest is not what it is on the host, with the reason. docs/volumes.md
// has the same list.
func differences() map[string]string {
	return map[string]string{
		"attributes of others' names by user": "trusted attributes need CAP_SYS_ADMIN, which a share's server does not have",
		"O_TMPFILE by root":                   "files without a name came to FUSE with Linux 6.2; programs make one with a name instead",
	}
}

// TestFileSystem: a volume in a guest answers as the host's file system that it is of: the cases of test/posix, and random
// exercises of one file, there and in the container's root file system.
func TestFileSystem(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("filesystem", nil)
	every := cmp.Or(os.Getenv(posixEvery), "40")
	dir := volume(t)
	c := guestSide(t, "posix", "TestFileSystemInGuest", "/work", &runtime.Mount{HostPath: dir, ContainerPath: "/work"})
	c.Envs = append(c.Envs, &runtime.KeyValue{Key: posixEvery, Value: []byte(every)})
	c.Linux.SecurityContext.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}} // for trusted attributes
	out := d.runWhile(pod, config, c, filepath.Join(dir, resultsFile))
	if !strings.Contains(out, "--- PASS: TestFileSystemInGuest") {
		t.Fatalf("the guest's side: %s", out)
	}
	d.stopAndRemove(pod)

	n, err := strconv.Atoi(every)
	if err != nil {
		t.Fatal(err)
	}
	var host bytes.Buffer
	cases, err := posix.Run(volume(t), &host, n)
	if err != nil {
		t.Fatal(err)
	}
	want, got := posix.Parse(host.String()), posix.Parse(read(t, filepath.Join(dir, resultsFile)))
	differ := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] == want[name] {
			continue
		}
		differ++
		if why, ok := differences()[name]; ok {
			t.Logf("%s differs: %s", name, why)
			continue
		}
		t.Errorf("%s:\n  guest %s\n  host  %s", name, got[name], want[name])
	}
	t.Logf("%d cases, %d differ", cases, differ)
	for seed := range exercises {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("exercise", seed)))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, fmt.Sprintf("exercise %d", seed), strings.Contains(out, fmt.Sprintf("exercise %d: %d bytes %x", seed, len(b), sha256.Sum256(b))), true)
	}
}

// runWhile is run for what takes long: it is waited for as long as the file grows.
func (d *daemon) runWhile(pod string, podConfig *runtime.PodSandboxConfig, config *runtime.ContainerConfig, growing string) string {
	d.t.Helper()
	id := d.launch(pod, podConfig, config)
	size := func() int64 {
		info, err := os.Stat(growing)
		if err != nil {
			return -1 // not there yet
		}
		return info.Size()
	}
	for d.status(id).State != runtime.ContainerState_CONTAINER_EXITED {
		before := size()
		eventually(d.t, growing+" to grow, or the container to end", func() bool {
			return size() != before || d.status(id).State == runtime.ContainerState_CONTAINER_EXITED
		})
	}
	status := d.wait(id)
	out := d.logOf(status, "stdout")
	if status.ExitCode != 0 {
		d.t.Fatalf("exit code %d: %s%s", status.ExitCode, out, d.logOf(status, "stderr"))
	}
	return out
}

// TestFileSystemInGuest is the guest's side of TestFileSystem.
func TestFileSystemInGuest(t *testing.T) {
	dir := os.Getenv(guestDir)
	if dir == "" {
		t.Skip("it runs inside a guest, started by TestFileSystem")
	}
	every, err := strconv.Atoi(os.Getenv(posixEvery))
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(dir, "work")
	results, err := os.Create(filepath.Join(dir, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	defer results.Close()
	unix.Umask(0)
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := posix.Run(work, results, every); err != nil {
		t.Fatal(err)
	}
	steps := exerciseSteps
	if every == 1 {
		steps *= thorough
	}
	for seed := range uint64(exercises) {
		content, err := posix.Exercise(filepath.Join(dir, fmt.Sprint("exercise", seed)), seed, steps)
		if err != nil {
			t.Error(err)
		}
		fmt.Printf("exercise %d: %d bytes %x\n", seed, len(content), sha256.Sum256(content))
		// The container's root file system, on the guest's disk, is no other.
		if _, err := posix.Exercise(fmt.Sprint("/exercise", seed), seed+exercises, steps); err != nil {
			t.Errorf("root file system: %v", err)
		}
		fmt.Fprintln(results, "exercised") // see runWhile
	}
}
