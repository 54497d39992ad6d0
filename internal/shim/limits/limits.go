package limits

import (
	"context"
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

// mostSum is more than anything has: limits that are as good as none add up to it and not to something small.
const mostSum = 1 << 62

// Pod knows what each container of the pod may use, and so what its VM needs. Processor and memory node numbers in limits
// are the host's: it gives containers virtual processors for them.
type Pod struct {
	vcpus func() int // of the VM, now
	host  func() (topology, error)

	turn chan struct{} // holds a token for whoever changes limits

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
	memory   int64  // bytes
	milliCPU int64  // thousandths of a processor
	cpus     []int  // of the host
	given    string // the list of virtual processors that stand for them
	// set is what was asked for, as far as it can be restored.
	set struct {
		limit, swap, quota *int64
		period, shares     *uint64
		cpus               string
	}
}

// Sum is what the limits of containers are together; containers without one do not count.
type Sum struct {
	MilliCPU int64 // thousandths of a processor
	Memory   int64 // bytes
}

// New is for a VM with so many processors.
func New(vcpus func() int) *Pod {
	p := &Pod{vcpus: vcpus, host: hostTopology, turn: make(chan struct{}, 1), virtual: map[int]int{}, containers: map[string]limits{}}
	p.turn <- struct{}{}
	return p
}

// InTurn changes limits, or what follows from them, when nobody else does. A change whose caller has gone is still to be undone, and
// he may ask again: the second must not build on what the first is about to undo.
func (p *Pod) InTurn(ctx context.Context, change func() error) error {
	select {
	case <-p.turn:
		defer func() { p.turn <- struct{}{} }()
		return change()
	case <-ctx.Done():
		return fmt.Errorf("another change of the pod's limits is under way: %w", context.Cause(ctx))
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
	guest := p.guest(r, &next)
	p.containers[id] = next
	return guest, nil
}

// Change is what changed limits come to.
type Change struct {
	// Guest is what the guest applies, Restore what takes it back there.
	Guest, Restore *specs.LinuxResources
	// Grows has the sums that become larger, which the VM must have room for, or the new limit would be a promise that nothing
	// backs.
	Grows Sum
	// Shrinks: a sum becomes smaller.
	Shrinks bool
	// Undo takes the limits back here.
	Undo func()
}

// Change takes changed limits. NotFound for a container that was not added, or is gone.
func (p *Pod) Change(id string, r *specs.LinuxResources) (Change, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, there := p.containers[id]
	if !there {
		return Change{}, fmt.Errorf("limits of container %s: %w", id, errdefs.ErrNotFound)
	}
	before := p.sum()
	next, err := old.with(r, p.host)
	if err != nil {
		return Change{}, err
	}
	restored := old // old is what the container has as long as it is not restored
	restore := p.guest(old.restore(r), &restored)
	guest := p.guest(r, &next)
	p.containers[id] = next
	sum := p.sum()
	c := Change{
		Guest: guest, Restore: restore,
		Shrinks: sum.Memory < before.Memory || sum.MilliCPU < before.MilliCPU,
		Undo: func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if _, there := p.containers[id]; there {
				p.containers[id] = old
			}
		},
	}
	if larger(old.memory, next.memory) {
		c.Grows.Memory = sum.Memory
	}
	if larger(old.milliCPU, next.milliCPU) {
		c.Grows.MilliCPU = sum.MilliCPU
	}
	return c, nil
}

func larger(old, next int64) bool { return next > 0 && (old == 0 || next > old) }

// Sum is that of all containers.
func (p *Pod) Sum() Sum {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum()
}

func (p *Pod) sum() (s Sum) {
	for _, l := range p.containers {
		s.Memory, s.MilliCPU = add(s.Memory, l.memory), add(s.MilliCPU, l.milliCPU)
	}
	return s
}

// add stays at mostSum.
func add(a, b int64) int64 { return a + min(b, mostSum-a) }

// Confined is how many virtual processors the VM must keep for containers that are confined to some of them.
func (p *Pod) Confined() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, l := range p.containers {
		for _, cpu := range l.cpus {
			if virtual, known := p.virtual[cpu]; known {
				n = max(n, virtual+1)
			}
		}
	}
	return n
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

// Outgrown are the lists of virtual processors that containers should have now, where the VM has others than when they were
// given theirs: a set of the host's that was larger than the VM may fit since it has grown.
func (p *Pod) Outgrown() map[string]*specs.LinuxResources {
	p.mu.Lock()
	defer p.mu.Unlock()
	changes := map[string]*specs.LinuxResources{}
	for id, l := range p.containers {
		if len(l.cpus) == 0 {
			continue
		}
		if list := formatList(p.virtualCPUs(l.cpus)); list != l.given {
			changes[id] = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: list}}
		}
	}
	return changes
}

// Given notes that a container has such a list.
func (p *Pod) Given(id, list string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l, there := p.containers[id]; there {
		l.given = list
		p.containers[id] = l
	}
}

// guest returns a copy of r with virtual processors in place of the host's, and notes them in next.
func (p *Pod) guest(r *specs.LinuxResources, next *limits) *specs.LinuxResources {
	if r == nil || r.CPU == nil || r.CPU.Cpus == "" && r.CPU.Mems == "" {
		return r
	}
	guest, cpu := *r, *r.CPU
	cpu.Mems = "" // the guest has one memory node
	if cpu.Cpus != "" {
		cpu.Cpus = formatList(p.virtualCPUs(next.cpus))
		next.given = cpu.Cpus
	}
	guest.CPU = &cpu
	return &guest
}

// virtualCPUs are as many as there are in set: the same for the same processors of the host and others for others, as
// far as the VM's go.
func (p *Pod) virtualCPUs(set []int) []int {
	var out []int
	vcpus := max(p.vcpus(), 1)
	if len(set) >= vcpus {
		for n := range vcpus {
			out = append(out, n)
		}
		return out
	}
	for _, cpu := range set {
		n, known := p.virtual[cpu]
		known = known && n < vcpus // the VM may have had more
		if !known || slices.Contains(out, n) {
			n = p.leastUsed(vcpus, out)
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
func (p *Pod) leastUsed(vcpus int, taken []int) int {
	uses := make([]int, vcpus)
	for _, n := range p.virtual {
		if n < vcpus {
			uses[n]++
		}
	}
	best := -1
	for n := range vcpus {
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
	if m := r.Memory; m != nil {
		set(&l.set.limit, m.Limit)
		set(&l.set.swap, m.Swap)
		if m.Limit != nil {
			l.memory = max(*m.Limit, 0)
		}
	}
	c := r.CPU
	if c == nil {
		return l, nil
	}
	set(&l.set.quota, c.Quota)
	set(&l.set.period, c.Period)
	set(&l.set.shares, c.Shares)
	if c.Quota != nil {
		period := uint64(100_000) // the kernel's own
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		l.milliCPU = int64(min(float64(max(*c.Quota, 0))*1000/float64(period), mostSum))
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
		l.set.cpus = c.Cpus
	}
	return l, nil
}

func set[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

// restore is the update that takes another one back.
func (l limits) restore(r *specs.LinuxResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if r == nil {
		return out
	}
	if r.Memory != nil {
		out.Memory = &specs.LinuxMemory{Limit: orNone(r.Memory.Limit, l.set.limit), Swap: orNone(r.Memory.Swap, l.set.swap)}
	}
	if r.CPU != nil {
		out.CPU = &specs.LinuxCPU{Quota: orNone(r.CPU.Quota, l.set.quota), Period: l.set.period, Shares: l.set.shares, Cpus: l.set.cpus}
	}
	return out
}

// orNone is the old value of what was changed: no limit where there was none.
func orNone(changed, old *int64) *int64 {
	if changed == nil || old != nil {
		return old
	}
	none := int64(-1)
	return &none
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
