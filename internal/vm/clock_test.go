package vm

import (
	"context"
	"testing"
)

func TestWatchClockEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watchClock(ctx, func() {}) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
