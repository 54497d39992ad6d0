package convert

import (
	"maps"
	"regexp"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
)

var (
	cpuSetPattern   = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
	pageSizePattern = regexp.MustCompile(`^[0-9]+[KMG]B$`)
	unifiedPattern  = regexp.MustCompile(`^[a-z0-9_]+(\.[a-z0-9_]+)+$`)
)

// toOCIResources validates and converts limits; nil in gives nil out. The OOM score is apart: it is no cgroup's.
func toOCIResources(field string, r *runtime.LinuxContainerResources) (*specs.LinuxResources, error) {
	if r == nil {
		return nil, nil
	}
	if err := validateResources(field, r); err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{Unified: maps.Clone(r.Unified)}
	cpu := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CpuPeriod > 0 {
		period := uint64(r.CpuPeriod)
		cpu.Period = &period
	}
	if r.CpuQuota != 0 {
		cpu.Quota = &r.CpuQuota
	}
	if r.CpuShares > 0 {
		shares := uint64(r.CpuShares)
		cpu.Shares = &shares
	}
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
	memory := specs.LinuxMemory{}
	if r.MemoryLimitInBytes != 0 {
		memory.Limit = &r.MemoryLimitInBytes
	}
	if r.MemorySwapLimitInBytes != 0 {
		memory.Swap = &r.MemorySwapLimitInBytes
	}
	if memory != (specs.LinuxMemory{}) {
		out.Memory = &memory
	}
	for _, limit := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: limit.PageSize, Limit: limit.Limit})
	}
	return out, nil
}

func validateResources(field string, r *runtime.LinuxContainerResources) error {
	switch {
	case r.CpuPeriod < 0 || r.CpuShares < 0 || r.CpuQuota < -1 || r.MemoryLimitInBytes < -1 || r.MemorySwapLimitInBytes < -1:
		return invalid("%s: a limit is negative", field)
	case r.CpuShares == 1 || r.CpuShares > 262144:
		return invalid("%s.cpu_shares: %d is not between 2 and 262144", field, r.CpuShares)
	case r.CpuPeriod != 0 && (r.CpuPeriod < 1000 || r.CpuPeriod > 1000000):
		return invalid("%s.cpu_period: %d µs is not between 1000 and 1000000", field, r.CpuPeriod)
	case r.CpuQuota > 0 && r.CpuQuota < 1000:
		return invalid("%s.cpu_quota: %d µs is less than the 1000 that the kernel takes", field, r.CpuQuota)
	case r.MemorySwapLimitInBytes > 0 && r.MemorySwapLimitInBytes < r.MemoryLimitInBytes:
		return invalid("%s.memory_swap_limit_in_bytes: memory and swap together, %d, are less than memory alone, %d",
			field, r.MemorySwapLimitInBytes, r.MemoryLimitInBytes)
	case r.OomScoreAdj < -1000 || r.OomScoreAdj > 1000:
		return invalid("%s.oom_score_adj: %d is not between -1000 and 1000", field, r.OomScoreAdj)
	}
	for name, set := range map[string]string{"cpuset_cpus": r.CpusetCpus, "cpuset_mems": r.CpusetMems} {
		if set != "" && !cpuSetPattern.MatchString(set) {
			return invalid("%s.%s: %q is not a list such as 0-3,6", field, name, set)
		}
	}
	for _, limit := range r.HugepageLimits {
		if !pageSizePattern.MatchString(limit.GetPageSize()) {
			return invalid("%s.hugepage_limits: %q is not a page size such as 2MB", field, limit.GetPageSize())
		}
	}
	for key, value := range r.Unified {
		if !unifiedPattern.MatchString(key) || strings.ContainsAny(value, "\x00") {
			return invalid("%s.unified: %q = %q is not a setting such as memory.high", field, key, value)
		}
	}
	return nil
}

// UpdatedResources are the limits that an update asks for.
func UpdatedResources(req *runtime.UpdateContainerResourcesRequest, s container.Status) (*specs.LinuxResources, error) {
	switch {
	case req.Windows != nil:
		return nil, unsupported("windows: this node runs Linux containers")
	case req.Linux == nil:
		return nil, invalid("the request has no resources")
	case len(req.Annotations) > 0:
		return nil, unsupported("annotations: none is known that would change resources")
	case MovesOOMScore(req.Linux, s) && onlyOOMScore(req.Linux):
		return nil, unsupported("linux.oom_score_adj: the OOM score of a container (%d) cannot be changed", s.Config.OOMScore)
	}
	return toOCIResources("linux", req.Linux)
}

// MovesOOMScore: the update asks for another OOM score. The kubelet computes one from memory requests, and sends it with
// each change of limits; no runtime moves the score of processes that run. The status goes on telling the true one.
func MovesOOMScore(r *runtime.LinuxContainerResources, s container.Status) bool {
	return r.GetOomScoreAdj() != 0 && int(r.GetOomScoreAdj()) != s.Config.OOMScore
}

func onlyOOMScore(r *runtime.LinuxContainerResources) bool {
	limits := proto.CloneOf(r)
	limits.OomScoreAdj = 0
	return proto.Size(limits) == 0
}

// Resources is the way back, for statuses.
func Resources(r *specs.LinuxResources, oomScore int) *runtime.LinuxContainerResources {
	out := &runtime.LinuxContainerResources{OomScoreAdj: int64(oomScore)}
	if r == nil {
		return out
	}
	out.Unified = maps.Clone(r.Unified)
	if cpu := r.CPU; cpu != nil {
		out.CpuPeriod, out.CpuShares = int64(value(cpu.Period)), int64(value(cpu.Shares))
		out.CpuQuota, out.CpusetCpus, out.CpusetMems = value(cpu.Quota), cpu.Cpus, cpu.Mems
	}
	if memory := r.Memory; memory != nil {
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = value(memory.Limit), value(memory.Swap)
	}
	for _, limit := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &runtime.HugepageLimit{PageSize: limit.Pagesize, Limit: limit.Limit})
	}
	return out
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
