package cgroup

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// CPU reads the group's processor usage. What the kernel does not report is zero.
func (g Group) CPU() *agentv1.CPUStats {
	stat, _ := g.read("cpu.stat")
	return &agentv1.CPUStats{UsageNs: keyed(stat)["usage_usec"] * 1000, Psi: g.pressure("cpu.pressure")}
}

// Memory reads the group's memory usage.
func (g Group) Memory() *agentv1.MemoryStats {
	current, _ := g.read("memory.current")
	swap, _ := g.read("memory.swap.current")
	stat, _ := g.read("memory.stat")
	limit, _ := g.read("memory.max")
	return memory(current, swap, stat, limit, g.pressure("memory.pressure"))
}

func memory(current, swap, stat, limit []byte, psi *agentv1.PSI) *agentv1.MemoryStats {
	values := keyed(stat)
	usage, _ := single(current)
	swapped, _ := single(swap)
	m := &agentv1.MemoryStats{
		UsageBytes:      usage,
		WorkingSetBytes: less(usage, values["inactive_file"]),
		RssBytes:        values["anon"],
		PageFaults:      values["pgfault"],
		MajorPageFaults: values["pgmajfault"],
		SwapBytes:       swapped,
		Psi:             psi,
	}
	if limit, ok := single(limit); ok {
		m.AvailableBytes = less(limit, m.WorkingSetBytes)
	}
	return m
}

func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// Pids reads how many tasks the group has and may have; a limit of 0 is none.
func (g Group) PidsStats() *agentv1.PidsStats {
	current, _ := g.read("pids.current")
	limit, _ := g.read("pids.max")
	s := &agentv1.PidsStats{}
	s.Current, _ = single(current)
	s.Limit, _ = single(limit)
	return s
}

func (g Group) pressure(name string) *agentv1.PSI {
	text, err := g.read(name)
	if err != nil {
		return nil
	}
	return parsePSI(text)
}

// parsePSI parses "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the line of full.
func parsePSI(text []byte) *agentv1.PSI {
	psi := &agentv1.PSI{Some: &agentv1.PSIData{}, Full: &agentv1.PSIData{}}
	for line := range strings.Lines(string(text)) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		data := psi.Some
		switch kind {
		case "some":
		case "full":
			data = psi.Full
		default:
			continue
		}
		for field := range strings.FieldsSeq(rest) {
			name, value, _ := strings.Cut(field, "=")
			switch name {
			case "total":
				data.TotalUs, _ = strconv.ParseUint(value, 10, 64)
			case "avg10":
				data.Avg10, _ = strconv.ParseFloat(value, 64)
			case "avg60":
				data.Avg60, _ = strconv.ParseFloat(value, 64)
			case "avg300":
				data.Avg300, _ = strconv.ParseFloat(value, 64)
			}
		}
	}
	return psi
}

// Guest reads what the whole guest uses, the kernel included.
func Guest() (*agentv1.CPUStats, *agentv1.MemoryStats) {
	stat, _ := os.ReadFile("/proc/stat")
	info, _ := os.ReadFile("/proc/meminfo")
	vmstat, _ := os.ReadFile("/proc/vmstat")
	cpu := &agentv1.CPUStats{UsageNs: guestCPU(stat), Psi: hostPressure("cpu")}
	return cpu, guestMemory(info, vmstat, hostPressure("memory"))
}

func hostPressure(name string) *agentv1.PSI {
	text, err := os.ReadFile("/proc/pressure/" + name)
	if err != nil {
		return nil
	}
	return parsePSI(text)
}

// userHZ is the unit of /proc/stat, a constant of the kernel's interface.
const userHZ = 100

// guestCPU sums the busy columns of the first line of /proc/stat: user nice system idle iowait irq softirq.
// What was stolen by the host and what guests of this guest used (counted as user already) stay out.
func guestCPU(stat []byte) uint64 {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) == 0 || fields[0] != "cpu" {
		return 0
	}
	var ticks uint64
	for i, field := range fields[1:] {
		if n, err := strconv.ParseUint(field, 10, 64); err == nil && (i < 3 || i == 5 || i == 6) {
			ticks += n
		}
	}
	return ticks * (1e9 / userHZ)
}

func guestMemory(info, vmstat []byte, psi *agentv1.PSI) *agentv1.MemoryStats {
	kib := map[string]uint64{}
	for line := range strings.Lines(string(info)) {
		name, rest, _ := strings.Cut(line, ":")
		value, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		kib[name], _ = strconv.ParseUint(value, 10, 64)
	}
	faults := keyed(vmstat)
	usage := less(kib["MemTotal"], kib["MemFree"]) << 10
	working := less(usage, kib["Inactive(file)"]<<10)
	return &agentv1.MemoryStats{
		UsageBytes:      usage,
		WorkingSetBytes: working,
		RssBytes:        kib["AnonPages"] << 10,
		PageFaults:      faults["pgfault"],
		MajorPageFaults: faults["pgmajfault"],
		AvailableBytes:  less(kib["MemTotal"]<<10, working),
		SwapBytes:       less(kib["SwapTotal"], kib["SwapFree"]) << 10,
		Psi:             psi,
	}
}
