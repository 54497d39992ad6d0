package share

import (
	"sync"
	"sync/atomic"
	"time"
)

// overdue is how long a worker may be with a request that it handles while nobody else reads: until once or twice that.
const overdue = 25 * time.Millisecond

// reading is held by the worker that reads requests. A request that is brief it handles itself and holds on, since to wake another
// worker costs more than the request; before all others it lets another one read. When it is not so brief after all, for its file
// system does not answer, whoever watches has another one read.
type reading struct {
	sync.Mutex
	turns    atomic.Uint64 // how many requests were handled so
	current  atomic.Uint64 // the one that is; 0: none
	sleeping atomic.Bool   // nobody watches, since nothing is done
	wake     chan struct{}
}

// brief tells a request that takes no time where its file system answers at once: one about names and attributes.
func brief(frame []byte) bool {
	switch opcode(frame) {
	case opRead, opWrite, opFsync, opFlush, opFsyncDir, opFallocate, opLseek, opCopyRange:
		return false
	}
	return true
}

// begin is called by the reader before it handles a request, and end after it.
func (r *reading) begin() (turn uint64) {
	turn = r.turns.Add(1)
	r.current.Store(turn)
	if r.sleeping.Load() && r.sleeping.CompareAndSwap(true, false) {
		r.wake <- struct{}{}
	}
	return turn
}

// end says whether the caller is the reader still.
func (r *reading) end(turn uint64) bool { return r.current.CompareAndSwap(turn, 0) }

// watch has another worker read when the reader is overdue.
func (s *session) watch() {
	tick := time.NewTicker(overdue)
	defer tick.Stop()
	r := &s.reading
	for seen := uint64(0); ; {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		turns, current := r.turns.Load(), r.current.Load()
		switch {
		case current != 0 && current == seen:
			if r.end(current) {
				s.letRead()
			}
		case current == 0 && turns == seen:
			tick.Stop()
			if !s.sleep(turns) {
				return
			}
			tick.Reset(overdue)
		}
		seen = turns
	}
}

// sleep waits for the next turn after that many. False: the session has ended.
func (s *session) sleep(turns uint64) bool {
	r := &s.reading
	r.sleeping.Store(true)
	if r.turns.Load() != turns && r.sleeping.CompareAndSwap(true, false) {
		return true // it had begun before it could see that nobody watches
	}
	select {
	case <-s.ended:
		return false
	case <-r.wake:
		return true
	}
}
