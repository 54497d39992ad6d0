package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/task"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func number(n uint64) *uint64 { return &n }

func TestUnifiedUsage(t *testing.T) {
	root := t.TempDir()
	writeFiles(t, filepath.Join(root, "pod/c"), map[string]string{
		"cpu.stat":            "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_periods 10\nnr_throttled 3\nthrottled_usec 5000\n",
		"cpu.pressure":        "some avg10=1.50 avg60=0.25 avg300=0.10 total=4242\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
		"memory.current":      "1000000\n",
		"memory.peak":         "1500000\n",
		"memory.swap.current": "4096\n",
		"memory.max":          "2000000\n",
		"memory.stat":         "anon 300000\nfile 600000\nkernel 70000\nslab 5\nfile_mapped 8000\nactive_file 100000\ninactive_file 400000\npgfault 99\npgmajfault 3\n",
		"memory.events":       "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\n",
		"pids.current":        "12\n",
		"pids.max":            "max\n",
		"cgroup.procs":        "9999999\n9999998\n",
		"inner/cgroup.procs":  strconv.Itoa(os.Getpid()) + "\n",
		"io.stat":             "254:999 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:0 \n",
		"io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n",
	})
	got, err := Unified(root).Usage("pod/c")
	if err != nil {
		t.Fatal(err)
	}
	want := task.ContainerStats{
		CPU: task.CPU{
			UsageNS: 1234567000, PSI: &task.PSI{Some: task.PSIData{Total: 4242, Avg10: 1.5, Avg60: 0.25, Avg300: 0.1}, Full: task.PSIData{Total: 7}},
			Detail: &task.CPUDetail{UserNS: 1e9, SystemNS: 234567000, Throttling: &task.Throttling{Periods: 10, Throttled: 3, ThrottledNS: 5e6}},
		},
		Memory: task.Memory{
			Usage: 1000000, WorkingSet: 600000, RSS: 300000, PageFaults: 99, MajorPageFaults: 3, Available: 1400000, Swap: 4096,
			Detail: &task.MemoryDetail{
				Cache: 600000, MappedFile: 8000, Kernel: 70000, ActiveFile: 100000, InactiveFile: 400000,
				Peak: number(1500000), LimitHits: number(5), OOMKills: number(1),
			},
		},
		IO: &task.IO{
			Devices: []task.DeviceIO{{Device: "254:999", ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}},
			PSI:     &task.PSI{Some: task.PSIData{Total: 1}, Full: task.PSIData{Total: 2}},
		},
		Pids: 12, Processes: 3,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if _, err := Unified(root).Usage("pod/gone"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestLegacyUsage(t *testing.T) {
	root := t.TempDir()
	var found []hierarchy
	for _, name := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
		found = append(found, hierarchy{mount: filepath.Join(root, name), options: []string{name}})
	}
	writeFiles(t, root, map[string]string{
		"cpuacct/p/cpuacct.usage":                           "1234567000\n",
		"cpuacct/p/cpuacct.stat":                            "user 100\nsystem 23\n",
		"cpu/p/cpu.stat":                                    "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n",
		"memory/p/memory.usage_in_bytes":                    "1000000\n",
		"memory/p/memory.max_usage_in_bytes":                "1500000\n",
		"memory/p/memory.limit_in_bytes":                    "9223372036854771712\n",
		"memory/p/memory.failcnt":                           "4\n",
		"memory/p/memory.kmem.usage_in_bytes":               "70000\n",
		"memory/p/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"memory/p/memory.stat":                              "cache 1\ntotal_cache 600000\ntotal_rss 300000\ntotal_mapped_file 8000\ntotal_swap 4096\ntotal_pgfault 99\ntotal_pgmajfault 3\ntotal_active_file 100000\ntotal_inactive_file 400000\n",
		"pids/p/pids.current":                               "12\n",
		"pids/p/pids.max":                                   "20\n",
		"pids/p/cgroup.procs":                               strconv.Itoa(os.Getpid()) + "\n9999998\n",
		"blkio/p/blkio.throttle.io_service_bytes_recursive": "254:999 Read 1\n254:999 Write 2\n254:999 Sync 3\n254:999 Total 3\nTotal 3\n",
		"blkio/p/blkio.throttle.io_serviced_recursive":      "254:999 Read 5\n254:999 Write 6\nTotal 11\n",
	})
	r, err := newReader(found)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Usage("p")
	if err != nil {
		t.Fatal(err)
	}
	if got.OpenFiles == nil || *got.OpenFiles == 0 {
		t.Errorf("open files of this process: %v", got.OpenFiles)
	}
	got.OpenFiles = nil
	want := task.ContainerStats{
		CPU: task.CPU{UsageNS: 1234567000, Detail: &task.CPUDetail{UserNS: 1e9, SystemNS: 23e7}},
		Memory: task.Memory{
			Usage: 1000000, WorkingSet: 600000, RSS: 300000, PageFaults: 99, MajorPageFaults: 3, Swap: 4096,
			Detail: &task.MemoryDetail{
				Cache: 600000, MappedFile: 8000, Kernel: 70000, ActiveFile: 100000, InactiveFile: 400000,
				Peak: number(1500000), LimitHits: number(4), OOMKills: number(2),
			},
		},
		IO:   &task.IO{Devices: []task.DeviceIO{{Device: "254:999", ReadBytes: 1, WriteBytes: 2, Reads: 5, Writes: 6}}},
		Pids: 12, PidsLimit: 20, Processes: 2,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestLongControlFile(t *testing.T) {
	dir := t.TempDir()
	long := make([]byte, 100<<10)
	writeFiles(t, dir, map[string]string{"long": string(long), "empty": ""})
	var f files
	if data, err := f.read(dir, "long"); err != nil || len(data) != len(long) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if data, err := f.read(dir, "empty"); err != nil || len(data) != 0 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte("some avg10=1.50 avg60=0.25 avg300=0.10 total=4242\n"))
	f.Add([]byte("anon 1\ninactive_file 18446744073709551615\n"))
	f.Add([]byte("8:0 rbytes=1 wios=x\n8:0 Read 7\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ParsePressure(string(text))
		eachField(text, func(string, uint64) {})
		var d devices
		d.parseIO(text)
		d.parseBlkio(text, func(*task.DeviceIO, string, uint64) {})
	})
}
