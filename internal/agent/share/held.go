package share

import (
	"encoding/binary"
	"time"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	opForget      = 2
	opRelease     = 18
	opReleaseDir  = 29
	opBatchForget = 42

	// heldFor is how long a request that nobody waits for waits for one to go with, maxHeld how many bytes of them do.
	heldFor = 2 * time.Millisecond
	maxHeld = 4 << 10
)

// outgoing are requests on their way to the server. Those that nobody waits for are held, and go in one piece with the next one,
// before it, or by themselves when none comes. What is held when the mount ends goes nowhere: the server lets go of everything then.
type outgoing struct {
	buf   []byte
	held  int
	since time.Time // when the first of them was held
}

func newOutgoing() *outgoing { return &outgoing{buf: make([]byte, maxHeld+agentv1.MaxShareFrame)} }

// room is where the next request is read to. It never has more than a message may have: the kernel fills it.
func (o *outgoing) room() []byte { return o.buf[o.held:][:agentv1.MaxShareFrame:agentv1.MaxShareFrame] }

// patience is how long the next request may be waited for, if anything is held.
func (o *outgoing) patience(now time.Time) time.Duration { return max(0, heldFor-now.Sub(o.since)) }

// hold holds a request of n bytes that is in room. It returns false where that is enough.
func (o *outgoing) hold(n int, now func() time.Time) bool {
	if o.held == 0 {
		o.since = now()
	}
	binary.NativeEndian.PutUint64(o.buf[o.held+8:], 0) // no answer is wanted
	o.held += n
	return o.held <= maxHeld
}

// all are the requests that are held and n bytes of the one that is in room. They are held no longer.
func (o *outgoing) all(n int) []byte {
	b := o.buf[:o.held+n]
	o.held = 0
	return b
}

// holdable tells a request that nobody waits for.
func holdable(request []byte) bool {
	if len(request) < requestHeader {
		return false
	}
	switch binary.NativeEndian.Uint32(request[4:]) {
	case opForget, opBatchForget, opRelease, opReleaseDir:
		return true
	}
	return false
}

// closed is the answer to a request that is held, which the kernel gets at once; nil to one that has none. What goes wrong when
// a file is closed is said to FLUSH, and never to RELEASE.
func closed(request []byte) []byte {
	switch binary.NativeEndian.Uint32(request[4:]) {
	case opRelease, opReleaseDir:
		return done(request, 0)
	}
	return nil
}
