package monitor_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/task"
)

// TestFootprint measures the memory of 20 monitors with one running container each: set PISTIS_MEASURE to the path of a
// built pistis-monitor. The kernel tells proportional sizes, so that what they share counts once.
func TestFootprint(t *testing.T) {
	binary := os.Getenv("PISTIS_MEASURE")
	if binary == "" {
		t.Skip("SKIPPED, not measured: PISTIS_MEASURE names no pistis-monitor")
	}
	const count = 20
	r := runtimes(t)["runc"]
	var pods []*pod
	for range count {
		p := newPod(t, r)
		p.config.Binary = binary
		p.config.Cgroup += fmt.Sprint(len(pods))
		p.group += fmt.Sprint(len(pods))
		var err error
		if p.Client, err = monitor.Launch(t.Context(), p.config); err != nil {
			t.Fatal(err)
		}
		p.run("c1", []string{"/prog", "pause"})
		go p.Wait(t.Context(), task.ID{Container: "c1"})
		pods = append(pods, p)
	}
	time.Sleep(3 * time.Second) // until the last of them has given back what its start took
	var total, worst int
	for _, p := range pods {
		kib := pss(t, p.PID())
		total, worst = total+kib, max(worst, kib)
	}
	t.Logf("PSS: %.2f MB each, at most %.2f MB", float64(total)/count*1024/1e6, float64(worst)*1024/1e6)
	out, _ := exec.Command("grep", "Threads", fmt.Sprintf("/proc/%d/status", pods[3].PID())).CombinedOutput()
	t.Logf("%s", out)
	for i := range 40 {
		for _, p := range pods {
			if _, _, _, err := p.exec(t.Context(), "c1", fmt.Sprint(i), []string{"/prog", "exit", "0"}, ""); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(3 * time.Second)
	total, worst = 0, 0
	for _, p := range pods {
		kib := pss(t, p.PID())
		total, worst = total+kib, max(worst, kib)
	}
	t.Logf("PSS after execs: %.2f MB each, at most %.2f MB", float64(total)/count*1024/1e6, float64(worst)*1024/1e6)
	for _, p := range pods {
		p.kill("c1")
		p.end("c1")
	}
}

func pss(t *testing.T, pid int) (kib int) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == "Pss:" {
			kib, _ = strconv.Atoi(fields[1])
		}
	}
	return kib
}
