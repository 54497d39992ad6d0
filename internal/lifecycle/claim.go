package lifecycle

import (
	"context"
	"fmt"
	"sync"
)

// Claim is held by whoever works on an object: one at a time, and those that wait come in any order.
type Claim struct {
	held chan struct{} // has one element while it is held

	mu      sync.Mutex // guards what follows; held for moments
	ends    []error    // why those that wait for the claim, or have it, want the object's end
	giveWay context.CancelCauseFunc
}

// NewClaim is free.
func NewClaim() *Claim { return &Claim{held: make(chan struct{}, 1)} }

// Acquire waits for the claim; the caller calls release.
func (c *Claim) Acquire(ctx context.Context) (release func(), err error) {
	select {
	case c.held <- struct{}{}:
		return func() { <-c.held }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("another operation on it is still running: %w", context.Cause(ctx))
	}
}

// AcquireToEnd is Acquire for who brings the object to its end. An operation that yields is cut off, and so is one that begins
// before the release; why is what it is told.
func (c *Claim) AcquireToEnd(ctx context.Context, why error) (release func(), err error) {
	c.mu.Lock()
	c.ends = append(c.ends, why)
	if c.giveWay != nil {
		c.giveWay(why)
	}
	c.mu.Unlock()
	done := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ends = c.ends[:len(c.ends)-1]
	}
	free, err := c.Acquire(ctx)
	if err != nil {
		done()
		return nil, err
	}
	return func() {
		done()
		free()
	}, nil
}

// AcquireYielding is Acquire for an operation that may take long, and that is worth nothing when the object ends: the context is
// for it, and ends when somebody wants that.
func (c *Claim) AcquireYielding(ctx context.Context) (yielding context.Context, release func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	free, err := c.Acquire(ctx)
	if err != nil {
		cancel(nil)
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveWay = cancel
	if len(c.ends) > 0 {
		cancel(c.ends[0])
	}
	return ctx, func() {
		c.mu.Lock()
		c.giveWay = nil
		c.mu.Unlock()
		cancel(nil)
		free()
	}, nil
}
