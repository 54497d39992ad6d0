package cgroup

import "github.com/pistis-run/pistis/internal/task"

func unifiedTotal(f *files, dir string, cpu *task.CPU, memory *task.Memory) error {
	if err := unifiedCPU(f, dir, cpu); err != nil {
		return err
	}
	return unifiedMemory(f, dir, memory)
}

// unifiedIO is nil without the io controller.
func unifiedIO(f *files, dir string) *task.IO {
	data, err := f.read(dir, "io.stat")
	if err != nil {
		return nil
	}
	var found devices
	found.parseIO(data)
	return &task.IO{Devices: found.list, PSI: f.pressure(dir, "io.pressure")}
}

func unifiedCPU(f *files, dir string, cpu *task.CPU) error {
	data, err := f.read(dir, "cpu.stat")
	if err != nil {
		return err
	}
	var detail task.CPUDetail
	var throttling task.Throttling
	eachField(data, func(name string, n uint64) {
		switch name {
		case "usage_usec":
			cpu.UsageNS = n * 1000
		case "user_usec":
			detail.UserNS = n * 1000
		case "system_usec":
			detail.SystemNS = n * 1000
		case "nr_periods":
			throttling.Periods = n
		case "nr_throttled":
			throttling.Throttled = n
		case "throttled_usec":
			throttling.ThrottledNS = n * 1000
		}
	})
	if throttling.Periods > 0 { // there is, or was, a quota
		detail.Throttling = &throttling
	}
	cpu.Detail, cpu.PSI = &detail, f.pressure(dir, "cpu.pressure")
	return nil
}

func unifiedMemory(f *files, dir string, m *task.Memory) error {
	data, err := f.read(dir, "memory.stat")
	if err != nil {
		return err
	}
	var detail task.MemoryDetail
	// Kernels before 5.18 do not add up what they use themselves.
	var kernelParts uint64
	eachField(data, func(name string, n uint64) {
		switch name {
		case "anon":
			m.RSS = n
		case "pgfault":
			m.PageFaults = n
		case "pgmajfault":
			m.MajorPageFaults = n
		case "file":
			detail.Cache = n
		case "file_mapped":
			detail.MappedFile = n
		case "active_file":
			detail.ActiveFile = n
		case "inactive_file":
			detail.InactiveFile = n
		case "kernel":
			detail.Kernel = n
		case "kernel_stack", "pagetables", "percpu", "sock", "slab":
			kernelParts += n
		}
	})
	if detail.Kernel == 0 {
		detail.Kernel = kernelParts
	}
	if data, err := f.read(dir, "memory.events"); err == nil {
		eachField(data, func(name string, n uint64) {
			switch name {
			case "max":
				detail.LimitHits = &n
			case "oom_kill":
				detail.OOMKills = &n
			}
		})
	}
	detail.Peak = f.maybe(dir, "memory.peak")
	m.Usage, m.Swap = f.number(dir, "memory.current"), f.number(dir, "memory.swap.current")
	m.PSI, m.Detail = f.pressure(dir, "memory.pressure"), &detail
	workingSet(m, detail.InactiveFile, f.number(dir, "memory.max"))
	return nil
}
