package vmm

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// guestMemory takes what it is asked to, in two steps, up to most; then it calls full.
type guestMemory struct {
	added, wanted, most uint64
	asked               int
	full                func()
	refusal             error
	silent              error // of questions after the first answers
	answers             int
}

func (g *guestMemory) Request(_ context.Context, bytes uint64) error {
	g.asked++
	if g.refusal == nil {
		g.wanted = bytes
	}
	return g.refusal
}

func (g *guestMemory) Added(context.Context) (uint64, error) {
	if g.answers--; g.silent != nil && g.answers < 0 {
		return 0, g.silent
	}
	now := g.added
	switch {
	case g.added == g.most && g.wanted > g.most:
		g.full()
	case g.added < g.wanted:
		g.added += hypervisor.MemoryStep
	case g.added > g.wanted:
		g.added -= hypervisor.MemoryStep
	}
	return now, nil
}

func TestResizeMemory(t *testing.T) {
	const step = hypervisor.MemoryStep
	size := hypervisor.Size{Memory: 2 * step, MaxMemory: 10 * step}
	m := &Machine{over: make(chan struct{})}
	ctx, giveUp := context.WithCancelCause(t.Context())
	enough := errors.New("enough waited")
	g := &guestMemory{most: 3 * step, full: func() { giveUp(enough) }}
	resize := func(what string, ctx context.Context, bytes, want uint64, is error, asked int) {
		t.Helper()
		g.asked = 0
		now, err := m.ResizeMemory(ctx, size, bytes, g)
		if now != want || !errors.Is(err, is) || g.asked != asked {
			t.Errorf("%s: %d MiB, %v, asked %d times; want %d MiB, %v, %d times", what, now>>20, err, g.asked, want>>20, is, asked)
		}
	}
	resize("more", ctx, 4*step-1, 4*step, nil, 1)
	resize("less than at the start", ctx, step, 2*step, nil, 1)
	resize("more than there can be", ctx, 11*step, 2*step, hypervisor.ErrTooLarge, 0)
	resize("more than the guest takes", ctx, 8*step, 5*step, enough, 1)
	resize("by a caller that has given up", ctx, 2*step, 5*step, enough, 0)
	g.refusal = errdefs.ErrFailedPrecondition
	resize("refused", t.Context(), 2*step, 5*step, errdefs.ErrFailedPrecondition, 1)
	g.refusal, g.silent, g.answers = nil, errors.New("no answer"), 0
	resize("of a VMM that does not answer", t.Context(), 2*step, 0, g.silent, 0)
	g.answers = 1
	resize("of a VMM that does not answer any more", t.Context(), 5*step, 5*step, g.silent, 1)
	g.silent = nil
	m.err = hypervisor.ErrPoweredOff
	close(m.over)
	resize("of one that ends", t.Context(), 2*step, 5*step, errdefs.ErrUnavailable, 1)
}
