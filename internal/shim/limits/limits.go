package limits

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxListed bounds the numbers of a list of processors or memory nodes.
const maxListed = 1 << 12

// Pod knows what each container of the pod may use. The VM was made for their sum: it refuses an update that the
// VM has no room for. Processor and memory node numbers in limits are the host's: it gives containers virtual
// processors for them.
type Pod struct {
	vcpus  int
	memory uint64 // bytes that the VM has for containers
	host   func() (topology, error)

	mu sync.Mutex
	// virtual is the processor that stands for one of the host, from the first time that a container is confined to that.
	virtual    map[int]int
	containers map[string]limits

	// applying orders what is done to the VM's process; applied are the host's processors that it is confined to.
	applying sync.Mutex
	applied  []int
}

// limits of one container; zero is none.
type limits struct {
	memory   int64 // bytes
	milliCPU int64 // thousandths of a processor
	cpus     []int // of the host
}

// New is for a VM with so many processors and bytes of memory, of which the guest needs own for itself.
func New(vcpus uint32, memory, own uint64) *Pod {
	return &Pod{
		vcpus: int(max(vcpus, 1)), memory: memory - min(memory, own), host: hostTopology,
		virtual: map[int]int{}, containers: map[string]limits{},
	}
}

// Add takes the limits of a new container and returns them as the guest applies them. They may be wider than the VM, as
// they may be wider than a host.
func (p *Pod) Add(id string, r *specs.LinuxResources) (*specs.LinuxResources, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := limits{}.with(r, p.host)
	if err != nil {
		return nil, err
	}
	p.containers[id] = next
	return p.guest(r, next), nil
}

// Change takes changed limits, unless the VM has no room for them; undo takes them back.
func (p *Pod) Change(id string, r *specs.LinuxResources) (guest *specs.LinuxResources, undo func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.containers[id]
	next, err := old.with(r, p.host)
	if err != nil {
		return nil, nil, err
	}
	if err := p.fit(id, old, next); err != nil {
		return nil, nil, err
	}
	p.containers[id] = next
	return p.guest(r, next), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.containers[id] = old
	}, nil
}

// Remove forgets a container.
func (p *Pod) Remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.containers, id)
}

// hostCPUs are the processors of the host that the containers are confined to, all together; nil when one is not.
func (p *Pod) hostCPUs() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []int
	for _, c := range p.containers {
		if len(c.cpus) == 0 {
			return nil
		}
		all = append(all, c.cpus...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Apply confines the VM's process to where its containers may run.
func (p *Pod) Apply(pid int) error {
	p.applying.Lock()
	defer p.applying.Unlock()
	cpus := p.hostCPUs()
	if slices.Equal(cpus, p.applied) {
		return nil
	}
	to := cpus
	if to == nil { // anywhere
		host, err := p.host()
		if err != nil {
			return err
		}
		to = host.cpus
	}
	if err := confine(pid, to); err != nil {
		return err
	}
	p.applied = cpus
	return nil
}

// fit refuses to grow beyond the VM, where the new limit would be a promise that nothing backs.
func (p *Pod) fit(id string, old, next limits) error {
	total := next
	for other, l := range p.containers {
		if other != id {
			total.memory, total.milliCPU = total.memory+l.memory, total.milliCPU+l.milliCPU
		}
	}
	grows := func(old, next int64) bool { return next > 0 && (old == 0 || next > old) }
	if grows(old.memory, next.memory) && uint64(total.memory) > p.memory {
		return fmt.Errorf("memory: the limits of the pod's containers would be %d MiB together, and its virtual machine has %d MiB for them; "+
			"make the pod anew with larger limits: %w", total.memory>>20, p.memory>>20, errdefs.ErrResourceExhausted)
	}
	if grows(old.milliCPU, next.milliCPU) && total.milliCPU > int64(p.vcpus)*1000 {
		return fmt.Errorf("cpu: the limits of the pod's containers would be %d.%03d processors together, and its virtual machine has %d; "+
			"make the pod anew with larger limits: %w", total.milliCPU/1000, total.milliCPU%1000, p.vcpus, errdefs.ErrResourceExhausted)
	}
	return nil
}

// guest returns a copy of r with virtual processors in place of the host's.
func (p *Pod) guest(r *specs.LinuxResources, next limits) *specs.LinuxResources {
	if r == nil || r.CPU == nil || r.CPU.Cpus == "" && r.CPU.Mems == "" {
		return r
	}
	guest, cpu := *r, *r.CPU
	cpu.Mems = "" // the guest has one memory node
	if cpu.Cpus != "" {
		cpu.Cpus = formatList(p.virtualCPUs(next.cpus))
	}
	guest.CPU = &cpu
	return &guest
}

// virtualCPUs are as many as there are in set: the same for the same processors of the host and others for others, as
// far as the VM's go.
func (p *Pod) virtualCPUs(set []int) []int {
	var out []int
	if len(set) >= p.vcpus {
		for n := range p.vcpus {
			out = append(out, n)
		}
		return out
	}
	for _, cpu := range set {
		n, known := p.virtual[cpu]
		if !known || slices.Contains(out, n) {
			n = p.leastUsed(out)
		}
		if !known {
			p.virtual[cpu] = n
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// leastUsed is the virtual processor that stands for the fewest of the host's and is not in taken.
func (p *Pod) leastUsed(taken []int) int {
	uses := make([]int, p.vcpus)
	for _, n := range p.virtual {
		uses[n]++
	}
	best := -1
	for n := range p.vcpus {
		if !slices.Contains(taken, n) && (best < 0 || uses[n] < uses[best]) {
			best = n
		}
	}
	return best
}

// with is the limits after those of r that are set.
func (l limits) with(r *specs.LinuxResources, host func() (topology, error)) (limits, error) {
	if r == nil {
		return l, nil
	}
	if m := r.Memory; m != nil && m.Limit != nil {
		l.memory = max(*m.Limit, 0)
	}
	c := r.CPU
	if c == nil {
		return l, nil
	}
	if c.Quota != nil {
		period := uint64(100_000) // the kernel's own
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		l.milliCPU = int64(float64(max(*c.Quota, 0)) * 1000 / float64(period))
	}
	if c.Cpus == "" && c.Mems == "" {
		return l, nil
	}
	has, err := host()
	if err != nil {
		return l, err
	}
	if err := has.checkNodes(c.Mems); err != nil {
		return l, fmt.Errorf("cpuset mems %.100q: %w", c.Mems, err)
	}
	if c.Cpus != "" {
		if l.cpus, err = has.parseCPUs(c.Cpus); err != nil {
			return l, fmt.Errorf("cpuset cpus %.100q: %w", c.Cpus, err)
		}
	}
	return l, nil
}

// parseList reads a list as 0-3,6, as cpuset(7) has it.
func parseList(text string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseUint(first, 10, 32)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseUint(last, 10, 32)
		}
		if err != nil || to < from || to >= maxListed {
			return nil, fmt.Errorf("not a list such as 0-3,6 of numbers below %d: %w", maxListed, errdefs.ErrInvalidArgument)
		}
		for n := from; n <= to; n++ {
			out = append(out, int(n))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func formatList(set []int) string {
	var parts []string
	for i := 0; i < len(set); i++ {
		from := i
		for i+1 < len(set) && set[i+1] == set[i]+1 {
			i++
		}
		if from == i {
			parts = append(parts, strconv.Itoa(set[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", set[from], set[i]))
		}
	}
	return strings.Join(parts, ",")
}
