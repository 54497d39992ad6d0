package metrics

import (
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/task"
)

const (
	counter = runtime.MetricType_COUNTER
	gauge   = runtime.MetricType_GAUGE
)

func seconds(ns uint64) uint64 { return ns / uint64(time.Second) }

// one is a metric with one value, without labels of its own.
func one(kind runtime.MetricType, name, help string, value func(sample) (uint64, bool)) row {
	return row{name: name, help: help, kind: kind, read: func(s sample, emit emit) {
		if v, ok := value(s); ok {
			emit(v)
		}
	}}
}

// known is a value that may be missing.
func known(p *uint64) (uint64, bool) {
	if p == nil {
		return 0, false
	}
	return *p, true
}

func cpuRows() []row {
	// detail and throttling are metrics of what may not be measured.
	detail := func(name, help string, value func(*task.CPUDetail) uint64) row {
		return one(counter, name, help, func(s sample) (uint64, bool) {
			if s.cpu.Detail == nil {
				return 0, false
			}
			return value(s.cpu.Detail), true
		})
	}
	throttling := func(name, help string, value func(*task.Throttling) uint64) row {
		return one(counter, name, help, func(s sample) (uint64, bool) {
			if s.cpu.Detail == nil || s.cpu.Detail.Throttling == nil {
				return 0, false
			}
			return value(s.cpu.Detail.Throttling), true
		})
	}
	return []row{
		one(counter, "container_cpu_usage_seconds_total", "Cumulative CPU time consumed in seconds.",
			func(s sample) (uint64, bool) { return seconds(s.cpu.UsageNS), true }),
		detail("container_cpu_user_seconds_total", "Cumulative user CPU time consumed in seconds.",
			func(d *task.CPUDetail) uint64 { return seconds(d.UserNS) }),
		detail("container_cpu_system_seconds_total", "Cumulative system CPU time consumed in seconds.",
			func(d *task.CPUDetail) uint64 { return seconds(d.SystemNS) }),
		throttling("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.",
			func(t *task.Throttling) uint64 { return t.Periods }),
		throttling("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.",
			func(t *task.Throttling) uint64 { return t.Throttled }),
		throttling("container_cpu_cfs_throttled_seconds_total", "Total time in seconds for which tasks were throttled.",
			func(t *task.Throttling) uint64 { return seconds(t.ThrottledNS) }),
	}
}

func memoryRows() []row {
	memory := func(name, help string, value func(task.Memory) uint64) row {
		return one(gauge, name, help, func(s sample) (uint64, bool) { return value(s.memory), true })
	}
	detail := func(kind runtime.MetricType, name, help string, value func(*task.MemoryDetail) (uint64, bool)) row {
		return one(kind, name, help, func(s sample) (uint64, bool) {
			if s.memory.Detail == nil {
				return 0, false
			}
			return value(s.memory.Detail)
		})
	}
	bytes := func(name, help string, value func(*task.MemoryDetail) uint64) row {
		return detail(gauge, name, help, func(d *task.MemoryDetail) (uint64, bool) { return value(d), true })
	}
	return []row{
		memory("container_memory_usage_bytes", "Memory in use in bytes, whenever it was last accessed.", func(m task.Memory) uint64 { return m.Usage }),
		memory("container_memory_working_set_bytes", "Working set in bytes.", func(m task.Memory) uint64 { return m.WorkingSet }),
		memory("container_memory_rss", "Anonymous memory in bytes.", func(m task.Memory) uint64 { return m.RSS }),
		memory("container_memory_swap", "Swap in use in bytes.", func(m task.Memory) uint64 { return m.Swap }),
		bytes("container_memory_cache", "Page cache in bytes.", func(d *task.MemoryDetail) uint64 { return d.Cache }),
		bytes("container_memory_mapped_file", "Memory-mapped files in bytes.", func(d *task.MemoryDetail) uint64 { return d.MappedFile }),
		bytes("container_memory_kernel_usage", "Kernel memory in bytes.", func(d *task.MemoryDetail) uint64 { return d.Kernel }),
		bytes("container_memory_total_active_file_bytes", "Page cache in bytes that was used lately.", func(d *task.MemoryDetail) uint64 { return d.ActiveFile }),
		bytes("container_memory_total_inactive_file_bytes", "Page cache in bytes that can be reclaimed first.", func(d *task.MemoryDetail) uint64 { return d.InactiveFile }),
		detail(gauge, "container_memory_max_usage_bytes", "Highest memory usage in bytes so far.", func(d *task.MemoryDetail) (uint64, bool) { return known(d.Peak) }),
		detail(counter, "container_memory_failcnt", "Number of times that memory usage met the limit.", func(d *task.MemoryDetail) (uint64, bool) { return known(d.LimitHits) }),
		detail(counter, "container_oom_events_total", "Number of processes that were killed for want of memory.", func(d *task.MemoryDetail) (uint64, bool) { return known(d.OOMKills) }),
		{
			name: "container_memory_failures_total", help: "Cumulative count of page faults.", kind: counter, labels: []string{"failure_type", "scope"},
			read: func(s sample, emit emit) {
				scope := "container"
				if s.stats == nil {
					scope = "hierarchy"
				}
				emit(s.memory.PageFaults, "pgfault", scope)
				emit(s.memory.MajorPageFaults, "pgmajfault", scope)
			},
		},
	}
}

func pressureRows() []row {
	ofIO := func(s sample) *task.PSI {
		if s.stats == nil || s.stats.IO == nil {
			return nil
		}
		return s.stats.IO.PSI
	}
	var rows []row
	for _, resource := range []struct {
		name, what string
		psi        func(sample) *task.PSI
	}{
		{"cpu", "a processor", func(s sample) *task.PSI { return s.cpu.PSI }},
		{"memory", "memory", func(s sample) *task.PSI { return s.memory.PSI }},
		{"io", "I/O", ofIO},
	} {
		pressure := func(kind, help string, data func(*task.PSI) task.PSIData) row {
			return one(counter, "container_pressure_"+resource.name+"_"+kind+"_seconds_total", help+resource.what+".", func(s sample) (uint64, bool) {
				psi := resource.psi(s)
				if psi == nil {
					return 0, false
				}
				return data(psi).Total / 1e6, true // the kernel counts microseconds
			})
		}
		rows = append(rows,
			pressure("waiting", "Total time in seconds for which some tasks waited for ", func(p *task.PSI) task.PSIData { return p.Some }),
			pressure("stalled", "Total time in seconds for which all tasks waited for ", func(p *task.PSI) task.PSIData { return p.Full }))
	}
	return rows
}

func networkRows() []row {
	var rows []row
	for _, way := range []struct {
		name, verb string
		traffic    func(task.Interface) task.Traffic
	}{
		{"receive", "received", func(i task.Interface) task.Traffic { return i.Rx }},
		{"transmit", "transmitted", func(i task.Interface) task.Traffic { return i.Tx }},
	} {
		traffic := func(what, help string, value func(task.Traffic) uint64) row {
			return row{
				name: "container_network_" + way.name + "_" + what + "_total", help: help, kind: counter, labels: []string{"interface"},
				read: func(s sample, emit emit) {
					for _, i := range s.interfaces {
						emit(value(way.traffic(i)), i.Name)
					}
				},
			}
		}
		rows = append(rows,
			traffic("bytes", "Cumulative count of bytes "+way.verb+".", func(t task.Traffic) uint64 { return t.Bytes }),
			traffic("packets", "Cumulative count of packets "+way.verb+".", func(t task.Traffic) uint64 { return t.Packets }),
			traffic("packets_dropped", "Cumulative count of packets that were dropped instead of "+way.verb+".", func(t task.Traffic) uint64 { return t.Dropped }),
			traffic("errors", "Cumulative count of packets that were not "+way.verb+" for an error.", func(t task.Traffic) uint64 { return t.Errors }))
	}
	return rows
}

func ioRows() []row {
	io := func(name, help string, value func(task.DeviceIO) uint64) row {
		return row{name: name, help: help, kind: counter, labels: []string{"device"}, read: func(s sample, emit emit) {
			if s.stats == nil || s.stats.IO == nil {
				return
			}
			for _, d := range s.stats.IO.Devices {
				emit(value(d), d.Device)
			}
		}}
	}
	return []row{
		io("container_fs_reads_bytes_total", "Cumulative count of bytes read.", func(d task.DeviceIO) uint64 { return d.ReadBytes }),
		io("container_fs_reads_total", "Cumulative count of reads completed.", func(d task.DeviceIO) uint64 { return d.Reads }),
		io("container_fs_writes_bytes_total", "Cumulative count of bytes written.", func(d task.DeviceIO) uint64 { return d.WriteBytes }),
		io("container_fs_writes_total", "Cumulative count of writes completed.", func(d task.DeviceIO) uint64 { return d.Writes }),
	}
}

// rootDevice labels the file system of a container's writable layer.
const rootDevice = "/"

func fileSystemRows() []row {
	of := func(name, help string, value func(task.FileSystem) uint64) row {
		return row{name: name, help: help, kind: gauge, labels: []string{"device"}, read: func(s sample, emit emit) {
			if s.stats != nil && s.writable != nil {
				emit(value(*s.writable), rootDevice)
			}
		}}
	}
	return []row{
		{
			name: "container_fs_usage_bytes", help: "What the container has written, in bytes.", kind: gauge, labels: []string{"device"},
			read: func(s sample, emit emit) {
				if s.stats != nil {
					emit(s.stats.WritableBytes, rootDevice)
				}
			},
		},
		of("container_fs_limit_bytes", "Size in bytes of the file system that the container writes to.", func(f task.FileSystem) uint64 { return f.Bytes }),
		of("container_fs_inodes_total", "Number of inodes of that file system.", func(f task.FileSystem) uint64 { return f.Inodes }),
		of("container_fs_inodes_free", "Number of inodes of that file system that are free.", func(f task.FileSystem) uint64 { return f.FreeInodes }),
	}
}

func processRows() []row {
	stats := func(name, help string, value func(*task.ContainerStats) uint64) row {
		return one(gauge, name, help, func(s sample) (uint64, bool) {
			if s.stats == nil {
				return 0, false
			}
			return value(s.stats), true
		})
	}
	return []row{
		one(gauge, "container_processes", "Number of processes.", func(s sample) (uint64, bool) {
			if s.stats == nil || s.stats.Processes == 0 {
				return 0, false
			}
			return s.stats.Processes, true
		}),
		stats("container_threads", "Number of threads.", func(c *task.ContainerStats) uint64 { return c.Pids }),
		stats("container_threads_max", "Largest number of threads that is allowed; 0 is no limit.", func(c *task.ContainerStats) uint64 { return c.PidsLimit }),
		{
			name: "container_ulimits_soft", help: "Soft limits of the container's first process.", kind: gauge, labels: []string{"ulimit"},
			read: func(s sample, emit emit) {
				if s.stats != nil && s.stats.OpenFiles != nil {
					emit(*s.stats.OpenFiles, "max_open_files")
				}
			},
		},
		one(gauge, "container_last_seen", "When the container was seen last, in seconds of Unix time.", func(s sample) (uint64, bool) {
			return uint64(max(0, s.at.Unix())), s.stats != nil
		}),
		one(gauge, "container_start_time_seconds", "When the container was started, in seconds of Unix time.", func(s sample) (uint64, bool) {
			return uint64(max(0, s.status.Started.Unix())), s.stats != nil && !s.status.Started.IsZero()
		}),
	}
}

func specRows() []row {
	return []row{
		one(gauge, "container_spec_cpu_period", "Period of the CPU quota in microseconds.", func(s sample) (uint64, bool) {
			if r := s.status.Config.Resources; r != nil && r.CPU != nil {
				return known(r.CPU.Period)
			}
			return 0, false
		}),
		one(gauge, "container_spec_cpu_quota", "CPU quota in microseconds for each period.", func(s sample) (uint64, bool) {
			if r := s.status.Config.Resources; r != nil && r.CPU != nil {
				return positive(r.CPU.Quota)
			}
			return 0, false
		}),
		one(gauge, "container_spec_cpu_shares", "CPU shares.", func(s sample) (uint64, bool) {
			if r := s.status.Config.Resources; r != nil && r.CPU != nil {
				return known(r.CPU.Shares)
			}
			return 0, false
		}),
		one(gauge, "container_spec_memory_limit_bytes", "Memory limit in bytes.", func(s sample) (uint64, bool) {
			if r := s.status.Config.Resources; r != nil && r.Memory != nil {
				return positive(r.Memory.Limit)
			}
			return 0, false
		}),
		one(gauge, "container_spec_memory_swap_limit_bytes", "Limit of memory and swap together in bytes.", func(s sample) (uint64, bool) {
			if r := s.status.Config.Resources; r != nil && r.Memory != nil {
				return positive(r.Memory.Swap)
			}
			return 0, false
		}),
	}
}

// positive is a limit that is set; -1 is none.
func positive(p *int64) (uint64, bool) {
	if p == nil || *p <= 0 {
		return 0, false
	}
	return uint64(*p), true
}
