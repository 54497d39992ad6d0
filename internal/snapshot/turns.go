package snapshot

import (
	"slices"
	"sync"
)

// turns bounds how many do something at a time. Turns come in the order in which they were asked for.
type turns struct {
	mu    sync.Mutex
	free  int
	queue []*turn
}

type turn struct {
	came chan struct{} // closed when it has come
}

// has tells whether the turn has come.
func (t *turn) has() bool {
	select {
	case <-t.came:
		return true
	default:
		return false
	}
}

func newTurns(n int) *turns { return &turns{free: n} }

// ask does not wait. Whoever asked gives the turn back in any case.
func (t *turns) ask() *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := &turn{came: make(chan struct{})}
	t.queue = append(t.queue, one)
	t.next()
	return one
}

// give ends a turn, or leaves the queue.
func (t *turns) give(one *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.queue, one); i >= 0 {
		t.queue = slices.Delete(t.queue, i, i+1)
		return
	}
	t.free++
	t.next()
}

// next lets those begin who may. t.mu is held.
func (t *turns) next() {
	for t.free > 0 && len(t.queue) > 0 {
		t.free--
		close(t.queue[0].came)
		t.queue = t.queue[1:]
	}
}
