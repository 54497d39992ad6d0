package share

import (
	"sync/atomic"
	"time"
)

// brief tells a request that takes no time where its file system answers at once: what is about names and attributes, and moves
// no data.
func brief(frame []byte) bool {
	switch opcode(frame) {
	case opRead, opWrite, 20, 25, 30, 43, 46, 47: // FSYNC, FLUSH, FSYNCDIR, FALLOCATE, LSEEK, COPY_FILE_RANGE
		return false
	}
	return !inMemory(frame)
}

// overdue is how long the reader may handle a request before another worker reads: between once and twice as long.
const overdue = 25 * time.Millisecond

// inline is the reader's work on a request while nobody else reads.
type inline struct {
	turns    atomic.Uint64 // how many there were
	current  atomic.Uint64 // the one that lasts; 0: the reader waits for a request, or has let another worker read
	sleeping atomic.Bool   // nobody watches, since nothing is done
	wake     chan struct{}
}

// begin is called by the reader before it handles a request, end after it.
func (i *inline) begin() (turn uint64) {
	turn = i.turns.Add(1)
	i.current.Store(turn)
	if i.sleeping.Load() && i.sleeping.CompareAndSwap(true, false) {
		i.wake <- struct{}{}
	}
	return turn
}

// end says whether the caller is the reader still.
func (i *inline) end(turn uint64) bool { return i.current.CompareAndSwap(turn, 0) }

// watch has another worker read when the reader has been with one request for too long.
func (s *session) watch() {
	tick := time.NewTicker(overdue)
	defer tick.Stop()
	i := &s.inline
	for seen := uint64(0); ; {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		turns, current := i.turns.Load(), i.current.Load()
		switch {
		case current != 0 && current == seen:
			if i.end(current) {
				s.letRead()
			}
		case current == 0 && turns == seen:
			if !s.sleep(turns) {
				return
			}
			tick.Reset(overdue)
		}
		seen = turns
	}
}

// sleep waits for the next turn after that many; false: the session has ended.
func (s *session) sleep(turns uint64) bool {
	s.inline.sleeping.Store(true)
	if s.inline.turns.Load() != turns && s.inline.sleeping.CompareAndSwap(true, false) {
		return true // one has begun that did not see it
	}
	select {
	case <-s.ended:
		return false
	case <-s.inline.wake:
		return true
	}
}
