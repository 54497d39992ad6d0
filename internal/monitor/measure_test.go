package monitor_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/task"
)

// monitorVariable names a pistis-monitor, built as for a release, that is measured.
const monitorVariable = "PISTIS_MEASURE"

// TestFootprint measures the memory of 20 monitors with one running container each, and again after 100 execs in each. The
// kernel tells proportional sizes, so that what they share counts once.
func TestFootprint(t *testing.T) {
	binary := os.Getenv(monitorVariable)
	if binary == "" {
		t.Skipf("SKIPPED, not measured: %s names no pistis-monitor", monitorVariable)
	}
	r := runtimes(t)["runc"]
	var pods []*pod
	for i := range 20 {
		p := newPod(t, r)
		p.config.Binary = binary
		p.config.Cgroup += fmt.Sprint(i)
		p.group += fmt.Sprint(i)
		var err error
		if p.Client, err = monitor.Launch(t.Context(), p.config); err != nil {
			t.Fatal(err)
		}
		p.run("c1", []string{"/prog", "pause"})
		go p.Wait(t.Context(), task.ID{Container: "c1"}) // as the daemon does
		pods = append(pods, p)
	}
	t.Log("running:", footprint(t, pods))
	for i := range 100 {
		for _, p := range pods {
			if _, _, _, err := p.exec(t.Context(), "c1", fmt.Sprint(i), []string{"/prog", "exit", "0"}, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Log("after 100 execs:", footprint(t, pods))
	for _, p := range pods {
		p.kill("c1")
		p.end("c1")
	}
}

func footprint(t *testing.T, pods []*pod) string {
	var total, worst int
	for _, p := range pods {
		kib := pss(t, p.PID())
		total, worst = total+kib, max(worst, kib)
	}
	return fmt.Sprintf("PSS %.2f MB each, at most %.2f MB", float64(total)/float64(len(pods))*1024/1e6, float64(worst)*1024/1e6)
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

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

// cpu is what a process has used, children not counted.
func cpu(t *testing.T, pid int) time.Duration {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}

// TestSpeed measures how fast output goes from a container into its log, and how long starts and execs take.
func TestSpeed(t *testing.T) {
	binary := os.Getenv(monitorVariable)
	if binary == "" {
		t.Skipf("SKIPPED, not measured: %s names no pistis-monitor", monitorVariable)
	}
	for name, r := range runtimes(t) {
		p := newPod(t, r)
		p.config.Binary = binary
		begin := time.Now()
		var err error
		if p.Client, err = monitor.Launch(t.Context(), p.config); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s, launch: %.1f ms", name, milliseconds(begin))
		const times = 20
		begin = time.Now()
		for range times {
			os.RemoveAll(p.run("c1", []string{"/prog", "exit", "0"}).Bundle)
			p.end("c1")
		}
		t.Logf("%s, start, exit and deletion: %.1f ms", name, milliseconds(begin)/times)
		const lineBytes = 100
		for how, lines := range map[string]int{"flood": 5_000_000, "drip": 1_000_000} {
			begin, used := time.Now(), cpu(t, p.PID())
			req := p.run("c1", []string{"/prog", how, fmt.Sprint(lines)})
			p.end("c1")
			megabytes := float64(lines*lineBytes) / 1e6
			t.Logf("%s, %s: %.0f MB/s; %.0f MB for a second of the monitor's CPU", name, how,
				megabytes/time.Since(begin).Seconds(), megabytes/(cpu(t, p.PID())-used).Seconds())
			os.Remove(req.LogPath)
			os.RemoveAll(req.Bundle)
		}
		p.run("c1", []string{"/prog", "pause"})
		begin = time.Now()
		for i := range times {
			if _, _, _, err := p.exec(t.Context(), "c1", fmt.Sprint(i), []string{"/prog", "exit", "0"}, ""); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s, exec: %.1f ms", name, milliseconds(begin)/times)
		p.kill("c1")
		p.end("c1")
	}
}
