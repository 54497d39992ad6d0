package vmm

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Meter sums what a VMM counts. It is asked one question at a time, and all who wait for counters share the answer. While one
// that hangs has not answered, nobody waits for it again.
type Meter struct {
	ask   func(context.Context) error
	asked sync.WaitGroup

	mu     sync.Mutex
	closed bool
	flight *flight // nil while nobody asks
	sums   map[hypervisor.CounterName]uint64
	last   Reading
}

// flight is a question.
type flight struct {
	over chan struct{}
	err  error // set before over is closed
	late bool  // somebody has waited in vain
}

// Reading is what devices, by their names, have counted since their own start.
type Reading map[string]map[hypervisor.CounterName]uint64

// NewMeter is for a VMM that ask has tell its counters, which go to Add or Observe before it returns. It may take as long as
// the VMM does, and ends with it.
func NewMeter(ask func(context.Context) error) *Meter {
	return &Meter{ask: ask, sums: map[hypervisor.CounterName]uint64{}}
}

// Add counts what came since the last time.
func (m *Meter) Add(counts map[hypervisor.CounterName]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, n := range counts {
		m.add(name, n)
	}
}

func (m *Meter) add(name hypervisor.CounterName, n uint64) {
	// Nothing falls, whatever a VMM says.
	if sum := m.sums[name]; n > math.MaxUint64-sum {
		n = math.MaxUint64 - sum
	}
	m.sums[name] += n
}

// Observe counts what devices have counted since the last reading. What they counted before they went stays.
func (m *Meter) Observe(r Reading) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for device, counts := range r {
		for name, n := range counts {
			if before := m.last[device][name]; before <= n { // else it is another device of that name
				n -= before
			}
			m.add(name, n)
		}
	}
	m.last = r
}

// Counters has the VMM tell its counters and returns the sums.
func (m *Meter) Counters(ctx context.Context) ([]hypervisor.Counter, error) {
	f, late := m.question()
	if late {
		return nil, fmt.Errorf("counters of the VMM: it has not answered since it was asked before: %w", errdefs.ErrUnavailable)
	}
	select {
	case <-f.over:
	case <-ctx.Done():
		m.mu.Lock()
		f.late = true
		m.mu.Unlock()
		return nil, fmt.Errorf("counters of the VMM: no answer: %w", context.Cause(ctx))
	}
	if f.err != nil {
		return nil, fmt.Errorf("counters of the VMM: %w", f.err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]hypervisor.Counter, 0, len(m.sums))
	for name, n := range m.sums {
		all = append(all, hypervisor.Counter{CounterName: name, Value: n})
	}
	slices.SortFunc(all, func(a, b hypervisor.Counter) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Part, b.Part), cmp.Compare(a.Direction, b.Direction))
	})
	return all, nil
}

// question is the one that is being asked, or a new one.
func (m *Meter) question() (f *flight, late bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flight != nil {
		return m.flight, m.flight.late
	}
	f = &flight{over: make(chan struct{})}
	if m.closed {
		f.err = fmt.Errorf("the VM has ended: %w", errdefs.ErrUnavailable)
		close(f.over)
		return f, false
	}
	m.flight = f
	m.asked.Go(func() {
		f.err = m.ask(context.Background())
		m.mu.Lock()
		m.flight = nil
		m.mu.Unlock()
		close(f.over)
	})
	return f, false
}

// Close waits for the last answer. It is called when the VMM has ended.
func (m *Meter) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.asked.Wait()
}
