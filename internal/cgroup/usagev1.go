package cgroup

import (
	"path/filepath"

	"github.com/pistis-run/pistis/internal/task"
)

// userHZ is the unit of cpuacct.stat, a constant of the kernel's interface.
const userHZ = 100

func (r *Reader) legacyTotal(f *files, path string, cpu *task.CPU, memory *task.Memory) error {
	if err := legacyMemory(f, filepath.Join(r.memory, path), memory); err != nil {
		return err
	}
	r.legacyCPU(f, path, cpu)
	return nil
}

func (r *Reader) legacyCPU(f *files, path string, cpu *task.CPU) {
	account := filepath.Join(r.cpuacct, path)
	cpu.UsageNS = f.number(account, "cpuacct.usage")
	if data, err := f.read(account, "cpuacct.stat"); err == nil {
		cpu.Detail = &task.CPUDetail{}
		eachField(data, func(name string, ticks uint64) {
			switch name {
			case "user":
				cpu.Detail.UserNS = ticks * (1e9 / userHZ)
			case "system":
				cpu.Detail.SystemNS = ticks * (1e9 / userHZ)
			}
		})
	}
	data, err := f.read(filepath.Join(r.cpu, path), "cpu.stat")
	if err != nil || cpu.Detail == nil {
		return
	}
	var throttling task.Throttling
	eachField(data, func(name string, n uint64) {
		switch name {
		case "nr_periods":
			throttling.Periods = n
		case "nr_throttled":
			throttling.Throttled = n
		case "throttled_time":
			throttling.ThrottledNS = n
		}
	})
	if throttling.Periods > 0 { // there is, or was, a quota
		cpu.Detail.Throttling = &throttling
	}
}

func legacyMemory(f *files, dir string, m *task.Memory) error {
	data, err := f.read(dir, "memory.stat")
	if err != nil {
		return err
	}
	var detail task.MemoryDetail
	eachField(data, func(name string, n uint64) {
		switch name {
		case "total_rss":
			m.RSS = n
		case "total_swap":
			m.Swap = n
		case "total_pgfault":
			m.PageFaults = n
		case "total_pgmajfault":
			m.MajorPageFaults = n
		case "total_cache":
			detail.Cache = n
		case "total_mapped_file":
			detail.MappedFile = n
		case "total_active_file":
			detail.ActiveFile = n
		case "total_inactive_file":
			detail.InactiveFile = n
		}
	})
	if data, err := f.read(dir, "memory.oom_control"); err == nil {
		eachField(data, func(name string, n uint64) {
			if name == "oom_kill" {
				detail.OOMKills = &n
			}
		})
	}
	detail.Kernel = f.number(dir, "memory.kmem.usage_in_bytes")
	detail.Peak, detail.LimitHits = f.maybe(dir, "memory.max_usage_in_bytes"), f.maybe(dir, "memory.failcnt")
	m.Usage, m.Detail = f.number(dir, "memory.usage_in_bytes"), &detail
	workingSet(m, detail.InactiveFile, f.number(dir, "memory.limit_in_bytes"))
	return nil
}

// legacyIO is nil without the blkio controller.
func (r *Reader) legacyIO(f *files, path string) *task.IO {
	if r.blkio == "" {
		return nil
	}
	dir := filepath.Join(r.blkio, path)
	data, err := f.read(dir, "blkio.throttle.io_service_bytes_recursive")
	if err != nil {
		return nil
	}
	var found devices
	found.parseBlkio(data, func(io *task.DeviceIO, operation string, n uint64) {
		switch operation {
		case "Read":
			io.ReadBytes = n
		case "Write":
			io.WriteBytes = n
		}
	})
	if data, err := f.read(dir, "blkio.throttle.io_serviced_recursive"); err == nil {
		found.parseBlkio(data, func(io *task.DeviceIO, operation string, n uint64) {
			switch operation {
			case "Read":
				io.Reads = n
			case "Write":
				io.Writes = n
			}
		})
	}
	return &task.IO{Devices: found.list}
}
