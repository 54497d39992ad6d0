package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
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

func TestStats(t *testing.T) {
	g := group(t, map[string]string{
		"cpu.stat":            "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n",
		"cpu.pressure":        "some avg10=1.50 avg60=0.25 avg300=0.10 total=4242\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
		"memory.current":      "1000000\n",
		"memory.swap.current": "4096\n",
		"memory.max":          "2000000\n",
		"memory.stat":         "anon 300000\nfile 600000\ninactive_file 400000\npgfault 99\npgmajfault 3\n",
		"memory.events":       "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\n",
		"pids.current":        "12\n",
		"pids.max":            "max\n",
		"cgroup.procs":        "7\n8\n",
		"inner/cgroup.procs":  "9\n",
	})
	want := &agentv1.CPUStats{UsageNs: 1234567000, Psi: &agentv1.PSI{
		Some: &agentv1.PSIData{TotalUs: 4242, Avg10: 1.5, Avg60: 0.25, Avg300: 0.1},
		Full: &agentv1.PSIData{TotalUs: 7},
	}}
	if got := g.CPU(); !proto.Equal(got, want) {
		t.Errorf("cpu: got %v, want %v", got, want)
	}
	wantMemory := &agentv1.MemoryStats{
		UsageBytes: 1000000, WorkingSetBytes: 600000, RssBytes: 300000, PageFaults: 99, MajorPageFaults: 3,
		AvailableBytes: 1400000, SwapBytes: 4096,
	}
	if got := g.Memory(); !proto.Equal(got, wantMemory) {
		t.Errorf("memory: got %v, want %v", got, wantMemory)
	}
	if got := g.PidsStats(); got.Current != 12 || got.Limit != 0 {
		t.Errorf("pids: got %v", got)
	}
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
	if got := g.Memory(); got.UsageBytes != 0 {
		t.Errorf("memory: %v", got)
	}
}

func TestGuest(t *testing.T) {
	if got := guestCPU([]byte("cpu  10 20 30 1000 50 5 6 70 80 0\ncpu0 1 2 3\n")); got != 71*1e7 {
		t.Errorf("cpu: got %d", got)
	}
	got := guestMemory([]byte("MemTotal:  1000 kB\nMemFree:  400 kB\nInactive(file): 100 kB\nAnonPages: 200 kB\nSwapTotal: 10 kB\nSwapFree: 10 kB\n"), []byte("pgfault 5\npgmajfault 1\n"), nil)
	want := &agentv1.MemoryStats{UsageBytes: 600 << 10, WorkingSetBytes: 500 << 10, RssBytes: 200 << 10, AvailableBytes: 500 << 10, PageFaults: 5, MajorPageFaults: 1}
	if !proto.Equal(got, want) {
		t.Errorf("memory: got %v, want %v", got, want)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte("some avg10=1.50 avg60=0.25 avg300=0.10 total=4242\n"))
	f.Add([]byte("anon 1\ninactive_file 18446744073709551615\n"))
	f.Add([]byte("cpu 1 2 3 -4\nMemTotal: x kB\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		parsePSI(text)
		guestCPU(text)
		guestMemory(text, text, nil)
		if m := memory(text, text, text, text, nil); m.WorkingSetBytes > m.UsageBytes {
			t.Errorf("working set %d exceeds usage %d", m.WorkingSetBytes, m.UsageBytes)
		}
	})
}
