package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/pistis-run/pistis/internal/task"
)

func group(t *testing.T, files map[string]string) Group {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Group(dir)
}

func TestProcesses(t *testing.T) {
	g := group(t, map[string]string{
		"memory.events":      "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\n",
		"cgroup.procs":       "7\n8\n",
		"inner/cgroup.procs": "9\n",
	})
	if got := g.OOMKills(); got != 1 {
		t.Errorf("oom kills: got %d", got)
	}
	pids, err := g.Pids()
	if slices.Sort(pids); err != nil || !slices.Equal(pids, []int{7, 8, 9}) {
		t.Errorf("pids: got %v, %v", pids, err)
	}
}

func TestMissingGroup(t *testing.T) {
	g := Group(filepath.Join(t.TempDir(), "gone"))
	if err := g.Kill(); err != nil {
		t.Errorf("kill: %v", err)
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("pids: %v, %v", pids, err)
	}
}

func TestGuest(t *testing.T) {
	cpu := guestCPU([]byte("cpu  10 20 30 1000 50 5 6 70 80 0\ncpu0 1 2 3\n"))
	if want := (task.CPU{UsageNS: 71 * 1e7, Detail: &task.CPUDetail{UserNS: 30 * 1e7, SystemNS: 41 * 1e7}}); !reflect.DeepEqual(cpu, want) {
		t.Errorf("cpu: got %+v", cpu)
	}
	got := guestMemory([]byte("MemTotal:  1000 kB\nMemFree:  400 kB\nCached: 300 kB\nActive(file): 90 kB\nInactive(file): 100 kB\nAnonPages: 200 kB\nMapped: 7 kB\nSlab: 20 kB\nKernelStack: 3 kB\nPageTables: 2 kB\nSwapTotal: 10 kB\nSwapFree: 10 kB\n"), []byte("pgfault 5\npgmajfault 1\n"))
	want := task.Memory{
		Usage: 600 << 10, WorkingSet: 500 << 10, RSS: 200 << 10, Available: 500 << 10, PageFaults: 5, MajorPageFaults: 1,
		Detail: &task.MemoryDetail{Cache: 300 << 10, MappedFile: 7 << 10, Kernel: 25 << 10, ActiveFile: 90 << 10, InactiveFile: 100 << 10},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("memory: got %+v, want %+v", got, want)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte("cpu 1 2 3 -4\nMemTotal: x kB\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		guestCPU(text)
		if m := guestMemory(text, text); m.WorkingSet > m.Usage {
			t.Errorf("working set %d exceeds usage %d", m.WorkingSet, m.Usage)
		}
	})
}
