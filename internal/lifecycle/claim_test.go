package lifecycle

import (
	"context"
	"errors"
	"testing"
)

func TestClaim(t *testing.T) {
	c := NewClaim()
	release, err := c.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Acquire(impatient); !errors.Is(err, context.Canceled) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := c.AcquireToEnd(impatient, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an end of no patience: %v", err)
	}
	if _, _, err := c.AcquireYielding(impatient); !errors.Is(err, context.Canceled) {
		t.Errorf("one that yields, of no patience: %v", err)
	}
	release()

	// One that works gives way to an end, and so does one that comes before the end is over.
	over := errors.New("it is over")
	ctx, release, err := c.AcquireYielding(t.Context())
	if err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	ended := make(chan error)
	go func() {
		release, err := c.AcquireToEnd(t.Context(), over)
		if err == nil {
			release()
		}
		ended <- err
	}()
	<-ctx.Done()
	if cause := context.Cause(ctx); cause != over {
		t.Errorf("told %v", cause)
	}
	release()
	if err := <-ended; err != nil {
		t.Errorf("end: %v", err)
	}
	ctx, release, err = c.AcquireYielding(t.Context())
	if err != nil || ctx.Err() != nil {
		t.Errorf("afterwards: %v, %v", err, ctx.Err())
	}
	release()
	if ctx.Err() == nil {
		t.Error("a context that outlives its claim")
	}
}

// TestClaimOfOneThatWaits: an end that is waiting is told to who gets the claim before it.
func TestClaimOfOneThatWaits(t *testing.T) {
	c := NewClaim()
	over := errors.New("it is over")
	c.ends = append(c.ends, over)
	ctx, release, err := c.AcquireYielding(t.Context())
	if err != nil || context.Cause(ctx) != over {
		t.Errorf("%v, %v", err, context.Cause(ctx))
	}
	release()
}
