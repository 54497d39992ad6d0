package streaming

import (
	"context"
	"fmt"
	"sync"
)

// gate counts those that are inside, and lets nobody in once it is closed. The zero value is open.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside int
	// empty is closed when the last one left after the gate closed.
	empty chan struct{}
}

// enter returns the function to call when leaving, and false when the gate is closed.
func (g *gate) enter() (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false
	}
	g.inside++
	return g.leave, true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.closed && g.inside == 0 {
		close(g.empty)
	}
}

// close closes the gate. It may be called again.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.closed, g.empty = true, make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
}

// wait blocks until all have left a closed gate, or ctx ends.
func (g *gate) wait(ctx context.Context) error {
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("streaming server: streams are still open: %w", ctx.Err())
	}
}
