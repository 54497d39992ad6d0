package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

// Reader reads what groups use. It knows where the host's controllers are, and opens nothing that it keeps; it may be
// used from any goroutine.
type Reader struct {
	// v2 is the unified hierarchy where it has the controllers. Otherwise each controller has a mount of its own.
	v2                    string
	cpuacct, memory, pids string
}

// NewReader finds the host's hierarchies.
func NewReader() (*Reader, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	defer f.Close()
	found, err := hierarchies(f)
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	return newReader(found)
}

func newReader(found []hierarchy) (*Reader, error) {
	with := func(controller string) string {
		i := slices.IndexFunc(found, func(h hierarchy) bool { return slices.Contains(h.options, controller) })
		if i < 0 {
			return ""
		}
		return found[i].mount
	}
	r := &Reader{cpuacct: with("cpuacct"), memory: with("memory"), pids: with("pids")}
	if r.memory == "" {
		i := slices.IndexFunc(found, func(h hierarchy) bool { return h.v2 })
		if i < 0 {
			return nil, fmt.Errorf("cgroups: no hierarchy with the memory controller is mounted: %w", errdefs.ErrFailedPrecondition)
		}
		r.v2 = found[i].mount
	}
	return r, nil
}

// V2: the host's controllers are on the unified hierarchy.
func (r *Reader) V2() bool { return r.v2 != "" }

// Usage of a group, whose path is relative to each hierarchy's root. NotFound when it has gone.
func (r *Reader) Usage(path string) (task.ContainerStats, error) {
	var (
		usage task.ContainerStats
		err   error
	)
	if r.V2() {
		usage, err = r.unifiedUsage(filepath.Join(r.v2, path))
	} else {
		usage, err = r.legacyUsage(path)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return usage, fmt.Errorf("cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return usage, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return usage, nil
}

func (r *Reader) unifiedUsage(dir string) (task.ContainerStats, error) {
	var u task.ContainerStats
	cpu, err := readFields(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return u, err
	}
	stat, err := readFields(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return u, err
	}
	u.CPU = task.CPU{UsageNS: cpu["usage_usec"] * 1000, PSI: readPressure(filepath.Join(dir, "cpu.pressure"))}
	u.Memory = task.Memory{
		Usage: readNumber(filepath.Join(dir, "memory.current")), RSS: stat["anon"], Swap: readNumber(filepath.Join(dir, "memory.swap.current")),
		PageFaults: stat["pgfault"], MajorPageFaults: stat["pgmajfault"], PSI: readPressure(filepath.Join(dir, "memory.pressure")),
	}
	workingSet(&u.Memory, stat["inactive_file"], readNumber(filepath.Join(dir, "memory.max")))
	u.Pids, u.PidsLimit = readNumber(filepath.Join(dir, "pids.current")), readNumber(filepath.Join(dir, "pids.max"))
	return u, nil
}

func (r *Reader) legacyUsage(path string) (task.ContainerStats, error) {
	var u task.ContainerStats
	memory, pids := filepath.Join(r.memory, path), filepath.Join(r.pids, path)
	stat, err := readFields(filepath.Join(memory, "memory.stat"))
	if err != nil {
		return u, err
	}
	u.CPU.UsageNS = readNumber(filepath.Join(r.cpuacct, path, "cpuacct.usage"))
	u.Memory = task.Memory{
		Usage: readNumber(filepath.Join(memory, "memory.usage_in_bytes")), RSS: stat["total_rss"], Swap: stat["total_swap"],
		PageFaults: stat["total_pgfault"], MajorPageFaults: stat["total_pgmajfault"],
	}
	workingSet(&u.Memory, stat["total_inactive_file"], readNumber(filepath.Join(memory, "memory.limit_in_bytes")))
	u.Pids, u.PidsLimit = readNumber(filepath.Join(pids, "pids.current")), readNumber(filepath.Join(pids, "pids.max"))
	return u, nil
}

// unlimited is below what v1 shows for a group without a limit: the largest multiple of a page in 63 bits.
const unlimited = 1 << 62

// workingSet is what cannot be reclaimed easily, as the kubelet's eviction understands it.
func workingSet(m *task.Memory, inactiveFile, limit uint64) {
	m.WorkingSet = m.Usage - min(m.Usage, inactiveFile)
	if limit > 0 && limit < unlimited {
		m.Available = limit - min(limit, m.WorkingSet)
	}
}

// readFields reads a file of lines "name value".
func readFields(path string) (map[string]uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := map[string]uint64{}
	for line := range bytes.Lines(data) {
		name, value, ok := strings.Cut(string(bytes.TrimSpace(line)), " ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			fields[name] = n
		}
	}
	return fields, nil
}

// readNumber is 0 where there is no such file, or no limit.
func readNumber(path string) uint64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// readPressure is nil where the kernel does not measure it.
func readPressure(path string) *task.PSI {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return parsePressure(string(data))
}

// parsePressure reads lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" (Documentation/accounting/psi.rst).
func parsePressure(text string) *task.PSI {
	var psi task.PSI
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		var d task.PSIData
		for _, field := range fields[1:] {
			name, value, _ := strings.Cut(field, "=")
			if name == "total" {
				d.Total, _ = strconv.ParseUint(value, 10, 64)
				continue
			}
			average, _ := strconv.ParseFloat(value, 64)
			switch name {
			case "avg10":
				d.Avg10 = average
			case "avg60":
				d.Avg60 = average
			case "avg300":
				d.Avg300 = average
			}
		}
		switch fields[0] {
		case "some":
			psi.Some = d
		case "full":
			psi.Full = d
		}
	}
	return &psi
}
