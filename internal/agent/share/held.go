package share

import (
	"encoding/binary"
	"time"
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
	buf   []byte // maxHeld bytes for what is held when it goes, and then the request that is read
	held  []byte
	since time.Time // when the first of them was held
}

func newOutgoing() *outgoing {
	return &outgoing{buf: frameBuffer(maxHeld, fixed), held: make([]byte, 0, maxHeld)}
}

// room is where the next request is read to. It has as much as a message may have and no more: the kernel fills it.
func (o *outgoing) room() []byte { return o.buf[maxHeld:] }

// patience is how long the next request may be waited for, if anything is held.
func (o *outgoing) patience(now time.Time) time.Duration { return max(0, heldFor-now.Sub(o.since)) }

// hold holds the request that is in room, to which no answer is wanted. It returns false where there is too much already.
func (o *outgoing) hold(request []byte, now func() time.Time) bool {
	binary.NativeEndian.PutUint64(request[8:], 0)
	if len(o.held)+len(request) > maxHeld {
		return false
	}
	if len(o.held) == 0 {
		o.since = now()
	}
	o.held = append(o.held, request...)
	return true
}

// all are the requests that are held and n bytes of the one that is in room. They are held no longer.
func (o *outgoing) all(n int) []byte {
	begin := maxHeld - len(o.held)
	copy(o.buf[begin:], o.held)
	o.held = o.held[:0]
	return o.buf[begin : maxHeld+n]
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
