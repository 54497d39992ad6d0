package share

import (
	"encoding/binary"
	"testing"
	"time"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	opLookup = 1

	opUnlink  = 10
	opReadDir = 28
	opCreate  = 35
)

// asked is a request of the kernel's.
func asked(op uint32, unique, node uint64, body ...uint32) []byte {
	b := make([]byte, requestHeader)
	for _, v := range body {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], op)
	binary.NativeEndian.PutUint64(b[8:], unique)
	binary.NativeEndian.PutUint64(b[16:], node)
	return b
}

func askedAttributes(node uint64, flags uint32) []byte {
	return asked(opGetAttr, 999, node, flags, 0, 0, 0)
}

// notice has attributes of a directory that are valid for two seconds and a half; its size is mark.
func notice(unique, node, mark uint64) []byte {
	b := answerOf(agentv1.ShareAttributesSize, 0)
	binary.NativeEndian.PutUint32(b[4:], agentv1.ShareAttributes)
	for _, v := range []uint64{unique, node, 2} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	b = binary.NativeEndian.AppendUint32(b, 500_000_000)
	b = append(b, make([]byte, agentv1.ShareAttributesSize-len(b))...)
	binary.NativeEndian.PutUint64(b[len(b)-88+8:], mark)
	return b
}

// kernel plays kernel and server to an ahead, at a time that it sets.
type kernel struct {
	t     *testing.T
	ahead ahead
	now   time.Time
}

func (k *kernel) clock() time.Time { return k.now }

func (k *kernel) asks(op uint32, unique uint64) {
	k.t.Helper()
	if answer := k.ahead.request(asked(op, unique, 1), k.clock); answer != nil {
		k.t.Errorf("operation %d has the answer %x", op, answer)
	}
}

func (k *kernel) told(unique, node, mark uint64) {
	k.t.Helper()
	if err := k.ahead.take(notice(unique, node, mark), k.now); err != nil {
		k.t.Error(err)
	}
}

func (k *kernel) answered(unique uint64) { k.ahead.answered(answerOf(minMessage, unique)) }

// knows says whether the attributes of a node are known, which must be those with a mark then.
func (k *kernel) knows(node, mark uint64) bool {
	k.t.Helper()
	answer := k.ahead.request(askedAttributes(node, 0), k.clock)
	if answer == nil {
		return false
	}
	if len(answer) != minMessage+attrOut || int(binary.NativeEndian.Uint32(answer)) != len(answer) || binary.NativeEndian.Uint64(answer[8:]) != 999 {
		k.t.Errorf("the answer is %x", answer)
	}
	if got := binary.NativeEndian.Uint64(answer[len(answer)-88+8:]); got != mark {
		k.t.Errorf("of node %d attributes %d are known, want %d", node, got, mark)
	}
	return true
}

// creates makes a file in a directory, and is told.
func (k *kernel) creates(unique, node uint64) {
	k.t.Helper()
	k.asks(opCreate, unique)
	k.told(unique, node, unique)
	k.answered(unique)
}

// TestAhead: what was told with a change is the answer to one question, as long as nothing else may have changed a directory.
func TestAhead(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(k *kernel)
		mark uint64 // 0: it must not be known
	}{
		"told":                    {func(k *kernel) { k.creates(2, 1) }, 2},
		"told before the answer":  {func(k *kernel) { k.asks(opCreate, 2); k.told(2, 1, 2) }, 2},
		"told nothing":            {func(k *kernel) { k.asks(opCreate, 2); k.answered(2) }, 0},
		"of another directory":    {func(k *kernel) { k.creates(2, 5) }, 0},
		"of both":                 {func(k *kernel) { k.asks(12, 2); k.told(2, 5, 2); k.told(2, 1, 2) }, 2},
		"of three":                {func(k *kernel) { k.asks(12, 2); k.told(2, 5, 2); k.told(2, 6, 2); k.told(2, 1, 2) }, 0},
		"asked before":            {func(k *kernel) { k.creates(2, 1); k.knows(1, 2) }, 0},
		"asked of another before": {func(k *kernel) { k.creates(2, 1); k.knows(5, 2) }, 2},
		"asked of an open file":   {func(k *kernel) { k.creates(2, 1); k.ahead.request(askedAttributes(1, ofHandle), k.clock) }, 2},
		"looked up and read":      {func(k *kernel) { k.creates(2, 1); k.asks(opLookup, 3); k.asks(opRead, 4); k.asks(opRelease, 5) }, 2},
		"changed since":           {func(k *kernel) { k.creates(2, 1); k.asks(4, 3) }, 0},
		"listed since":            {func(k *kernel) { k.creates(2, 1); k.asks(opReadDir, 3) }, 0},
		"something unknown since": {func(k *kernel) { k.creates(2, 1); k.asks(4711, 3) }, 0},
		"changed twice":           {func(k *kernel) { k.creates(2, 1); k.creates(3, 1) }, 3},
		"another one since": {func(k *kernel) {
			k.asks(opCreate, 2)
			k.asks(opUnlink, 3)
			k.told(2, 1, 2)
			k.answered(2)
		}, 0},
		"another one since, which is answered": {func(k *kernel) {
			k.asks(opCreate, 2)
			k.asks(opUnlink, 3)
			k.answered(3)
			k.told(2, 1, 2)
		}, 0},
		"another one before": {func(k *kernel) {
			k.asks(opUnlink, 2)
			k.asks(opCreate, 3)
			k.told(3, 1, 3)
		}, 0},
		"another one before, which is answered": {func(k *kernel) {
			k.asks(opUnlink, 2)
			k.asks(opCreate, 3)
			k.answered(2)
			k.told(3, 1, 3)
		}, 0},
		"the other one is told last": {func(k *kernel) {
			k.asks(opUnlink, 2)
			k.asks(opCreate, 3)
			k.told(3, 1, 3)
			k.answered(3)
			k.told(2, 1, 2)
			k.answered(2)
		}, 0},
		"alone after two": {func(k *kernel) {
			k.asks(opUnlink, 2)
			k.asks(opCreate, 3)
			k.answered(3)
			k.answered(2)
			k.creates(4, 1)
		}, 4},
		"told too late":      {func(k *kernel) { k.asks(opCreate, 2); k.answered(2); k.told(2, 1, 2) }, 0},
		"of no request":      {func(k *kernel) { k.told(0, 1, 2); k.told(7, 1, 2) }, 0},
		"valid no more":      {func(k *kernel) { k.creates(2, 1); k.now = k.now.Add(2500 * time.Millisecond) }, 0},
		"valid for a moment": {func(k *kernel) { k.creates(2, 1); k.now = k.now.Add(2499 * time.Millisecond) }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{t: t, ahead: ahead{changing: map[uint64]struct{}{}}, now: time.Unix(1, 0)}
			tc.do(k)
			if knows := k.knows(1, tc.mark); knows != (tc.mark != 0) {
				t.Errorf("known: %v", knows)
			}
			if k.knows(1, tc.mark) {
				t.Error("it answers twice")
			}
		})
	}
}

// TestAheadIsNotLonger: the kernel may believe an answer for what is left of the time that the server gave.
func TestAheadIsNotLonger(t *testing.T) {
	k := &kernel{t: t, ahead: ahead{changing: map[uint64]struct{}{}}, now: time.Unix(1, 0)}
	k.creates(2, 1)
	k.now = k.now.Add(1200 * time.Millisecond)
	answer := k.ahead.request(askedAttributes(1, 0), k.clock)
	if s, ns := binary.NativeEndian.Uint64(answer[minMessage:]), binary.NativeEndian.Uint32(answer[minMessage+8:]); s != 1 || ns != 300_000_000 {
		t.Errorf("valid for %d s and %d ns", s, ns)
	}
}

// TestAheadOfNonsense: what cannot be is refused, or does no harm.
func TestAheadOfNonsense(t *testing.T) {
	a := ahead{changing: map[uint64]struct{}{}}
	long := notice(2, 1, 0)
	for _, frame := range [][]byte{long[:minMessage], long[:len(long)-1], append(long[:len(long):len(long)], 0)} {
		if err := a.take(frame, time.Unix(1, 0)); err == nil {
			t.Errorf("a message of %d bytes is taken", len(frame))
		}
	}
	for _, frame := range [][]byte{nil, make([]byte, requestHeader-1), asked(opGetAttr, 2, 1)} {
		if answer := a.request(frame, time.Now); answer != nil {
			t.Errorf("a request of %d bytes is answered", len(frame))
		}
	}
	a.request(asked(opCreate, 2, 1), time.Now)
	binary.NativeEndian.PutUint64(long[minMessage+16:], ^uint64(0))
	if err := a.take(long, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	answer := a.request(askedAttributes(1, 0), func() time.Time { return time.Unix(1, 0) })
	if s := binary.NativeEndian.Uint64(answer[minMessage:]); s != uint64(longest/time.Second) {
		t.Errorf("valid for %d s", s)
	}
}

// FuzzAhead: whatever comes from either side, what is kept is bounded and an answer is one.
func FuzzAhead(f *testing.F) {
	f.Add(asked(opCreate, 2, 1), notice(2, 1, 0), askedAttributes(1, 0))
	f.Add(asked(opUnlink, 2, 1), notice(3, 1, 0), askedAttributes(1, ofHandle))
	f.Add([]byte{}, notice(2, 1, 0)[:minMessage], asked(opGetAttr, 3, 1))
	f.Fuzz(func(t *testing.T, change, told, question []byte) {
		a := ahead{changing: map[uint64]struct{}{}}
		now := func() time.Time { return time.Unix(1, 0) }
		a.request(change, now)
		for range maxAhead + 1 {
			if len(told) >= minMessage {
				_ = a.take(told, now())
			}
		}
		if len(a.known) > maxAhead || len(a.changing) > 1 {
			t.Errorf("%d and %d are kept", len(a.known), len(a.changing))
		}
		if answer := a.request(question, now); answer != nil && (len(answer) != minMessage+attrOut || string(answer[8:minMessage]) != string(question[8:16])) {
			t.Errorf("the answer is %x", answer)
		}
		if len(told) >= minMessage {
			a.answered(told)
		}
	})
}
