package integration

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fivePods runs five pods, each with a container that goes on.
func (d *daemon) fivePods() (pods, containers [5]string) {
	d.t.Helper()
	for i := range pods {
		// One after the other: guests that are emulated take longer when they boot at once.
		pod, config := d.runPod(fmt.Sprintf("pod%d", i), nil)
		pods[i], containers[i] = pod, d.launch(pod, config, shell("main", "exec sleep 100000"))
	}
	return pods, containers
}

// process is the pid, on this host, of one of a pod's processes: shimPid or vmmPid.
func (d *daemon) process(pod, which string) int {
	d.t.Helper()
	info := d.info(pod)
	pid, err := strconv.Atoi(info[which])
	if err != nil {
		d.t.Fatalf("no %s in the verbose status: %v", which, info)
	}
	return pid
}

// end kills a process and waits until it and others have ended.
func end(t *testing.T, pid int, others ...int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, p := range append(others, pid) {
		eventually(t, fmt.Sprintf("process %d to end", p), func() bool { return ended(p) })
	}
}

// ended is true of zombies too: who reaps an orphan is the host's affair.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

// TestFivePodsSurvive: the daemon is killed, then one shim and one VMM while there is no daemon, then another shim and
// another VMM while there is one. What was not killed goes on.
func TestFivePodsSurvive(t *testing.T) {
	d := startDaemon(t, "memory_mib = 160\nboot_timeout = \"3m\"\n")
	d.pull(testImage)
	pods, containers := d.fivePods()
	var shims, vmms [5]int
	for i, p := range pods {
		shims[i], vmms[i] = d.process(p, "shimPid"), d.process(p, "vmmPid")
	}
	lost := func(i int, reason string) {
		t.Helper()
		status := d.wait(containers[i])
		expect(t, "exit code", status.ExitCode, 255)
		if !strings.Contains(status.Message, reason) {
			t.Errorf("pod %d: the container's message %q does not say %q", i, status.Message, reason)
		}
		eventually(t, "the sandbox to be not ready", func() bool {
			return d.sandboxState(pods[i]) == runtime.PodSandboxState_SANDBOX_NOTREADY
		})
	}
	goOn := func(when string, which ...int) {
		t.Helper()
		d.all()
		for _, i := range which {
			expect(t, when+": pod", d.sandboxState(pods[i]), runtime.PodSandboxState_SANDBOX_READY)
			expect(t, when+": container", d.status(containers[i]).State, runtime.ContainerState_CONTAINER_RUNNING)
			expect(t, when+": exec", d.execSync(containers[i], "hostname"), fmt.Sprintf("pod%d\n", i))
		}
	}
	d.kill()
	end(t, shims[0], vmms[0])
	end(t, vmms[1])
	d.start()
	goOn("after the daemon's death", 2, 3, 4)
	lost(0, "gone when the daemon started")
	lost(1, "virtual machine ended")

	end(t, shims[2], vmms[2])
	lost(2, "shim")
	end(t, vmms[3])
	lost(3, "virtual machine")
	goOn("after another shim's and VMM's death", 4)

	// Names of what was lost are free once it was removed, and stay so over a restart.
	for _, i := range []int{0, 1, 2, 3} {
		d.stopAndRemove(pods[i])
	}
	d.kill()
	d.start()
	goOn("after the second restart", 4)
	again, _ := d.runPod("pod0", nil)
	d.stopAndRemove(again)
	d.stopAndRemove(pods[4])
	d.nothing("after all")
}

// TestLongLogWhileDown: 100 MB that are written while there is no daemon arrive byte for byte. It takes a minute and
// more where guests are emulated, and runs with PISTIS_LONG=1 only; TestDaemonKilled does the same with less.
func TestLongLogWhileDown(t *testing.T) {
	if os.Getenv("PISTIS_LONG") == "" {
		t.Skip("SKIPPED: takes long, set PISTIS_LONG=1")
	}
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("long", nil)
	const size = 100 << 20
	const line = "0123456789abcdefghijklmnopqrstuvwxyz the quick brown fox jumps over the lazy dog 0123456789 ABCDEFG\n"
	write := fmt.Sprintf("while ! [ -e /dev/shm/go ]; do sleep 0.1; done; yes '%s' | head -c %d; echo; echo done; exit 3", strings.TrimSuffix(line, "\n"), size)
	writer := d.launch(pod, config, shell("writer", write))
	logPath := d.status(writer).LogPath
	d.execSync(writer, "sh", "-c", "(sleep 1; touch /dev/shm/go) >/dev/null 2>&1 &")
	d.kill()
	start := time.Now()
	eventually(t, "the writer's last line", func() bool { return strings.Contains(tail(t, logPath), " stdout F done") })
	took := time.Since(start)
	t.Logf("%d bytes in %v: %.1f MB/s", size, took, size/1e6/took.Seconds())
	d.start()
	status := d.wait(writer)
	expect(t, "exit code that happened meanwhile", status.ExitCode, 3)
	n, sum := digestOfLog(t, logPath, "stdout")
	want := sha256.New()
	copied, err := io.CopyN(want, &repeat{text: line}, size)
	if err != nil {
		t.Fatal(err)
	}
	want.Write([]byte("\ndone\n"))
	expect(t, "bytes in the log", n, copied+int64(len("\ndone\n")))
	expect(t, "digest of the log", sum, fmt.Sprintf("%x", want.Sum(nil)))
	d.stopAndRemove(pod)
}

// repeat reads a text again and again.
type repeat struct {
	text string
	at   int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.at:])
	r.at = (r.at + n) % len(r.text)
	return n, nil
}

// tail is the end of a file, which may not be there yet.
func tail(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, min(info.Size(), 4<<10))
	if _, err := f.ReadAt(b, info.Size()-int64(len(b))); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// digestOfLog is what logText returns, as its length and digest, of a log that may be large.
func digestOfLog(t *testing.T, path, stream string) (n int64, sum string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	digest := sha256.New()
	lines := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return n, fmt.Sprintf("%x", digest.Sum(nil))
		}
		if err != nil {
			t.Fatal(err)
		}
		parts := bytes.SplitN(line, []byte(" "), 4)
		if len(parts) != 4 {
			t.Fatalf("not a line of a CRI log: %q", line)
		}
		if string(parts[1]) != stream {
			continue
		}
		if string(parts[2]) == "P" {
			parts[3] = bytes.TrimSuffix(parts[3], []byte("\n"))
		}
		n += int64(len(parts[3]))
		digest.Write(parts[3])
	}
}
