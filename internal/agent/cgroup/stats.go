package cgroup

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	hostcgroup "github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/task"
)

// Usage of a container. NotFound when its group has gone.
func Usage(id string) (task.ContainerStats, error) {
	usage, err := hostcgroup.Unified(Root).Usage(Path(id))
	usage.ID = id
	return usage, err
}

// Guest reads what the whole guest uses, the kernel included, and the pressure of I/O on it.
func Guest() (task.CPU, task.Memory, *task.PSI) {
	stat, _ := os.ReadFile("/proc/stat")
	info, _ := os.ReadFile("/proc/meminfo")
	vmstat, _ := os.ReadFile("/proc/vmstat")
	cpu, memory := guestCPU(stat), guestMemory(info, vmstat)
	cpu.PSI, memory.PSI = guestPressure("cpu"), guestPressure("memory")
	return cpu, memory, guestPressure("io")
}

// guestPressure is nil where the kernel does not measure it.
func guestPressure(name string) *task.PSI {
	text, err := os.ReadFile("/proc/pressure/" + name)
	if err != nil {
		return nil
	}
	return hostcgroup.ParsePressure(string(text))
}

// userHZ is the unit of /proc/stat, a constant of the kernel's interface.
const userHZ = 100

// guestCPU sums the busy columns of the first line of /proc/stat: user nice system idle iowait irq softirq.
// What was stolen by the host and what guests of this guest used (counted as user already) stay out.
func guestCPU(stat []byte) task.CPU {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) == 0 || fields[0] != "cpu" {
		return task.CPU{}
	}
	var user, system uint64
	for i, field := range fields[1:] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			continue
		}
		switch i {
		case 0, 1:
			user += n
		case 2, 5, 6:
			system += n
		}
	}
	user, system = user*(1e9/userHZ), system*(1e9/userHZ)
	return task.CPU{UsageNS: user + system, Detail: &task.CPUDetail{UserNS: user, SystemNS: system}}
}

func guestMemory(info, vmstat []byte) task.Memory {
	kib := map[string]uint64{}
	for line := range strings.Lines(string(info)) {
		name, rest, _ := strings.Cut(line, ":")
		value, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		kib[name], _ = strconv.ParseUint(value, 10, 64)
	}
	less := func(a, b uint64) uint64 { return a - min(a, b) }
	faults := keyed(vmstat)
	usage := less(kib["MemTotal"], kib["MemFree"]) << 10
	working := less(usage, kib["Inactive(file)"]<<10)
	return task.Memory{
		Usage: usage, WorkingSet: working, RSS: kib["AnonPages"] << 10,
		PageFaults: faults["pgfault"], MajorPageFaults: faults["pgmajfault"],
		Available: less(kib["MemTotal"]<<10, working), Swap: less(kib["SwapTotal"], kib["SwapFree"]) << 10,
		Detail: &task.MemoryDetail{
			Cache: kib["Cached"] << 10, MappedFile: kib["Mapped"] << 10, Kernel: (kib["Slab"] + kib["KernelStack"] + kib["PageTables"]) << 10,
			ActiveFile: kib["Active(file)"] << 10, InactiveFile: kib["Inactive(file)"] << 10,
		},
	}
}
