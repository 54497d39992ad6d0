package share

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/transport"
)

// pieces notes what is written, each piece by itself.
type pieces chan []byte

func (p pieces) Write(b []byte) (int, error) {
	p <- bytes.Clone(b)
	return len(b), nil
}

// operations splits a piece into requests, and says of each the operation, negative where it wants no answer.
func operations(t *testing.T, b []byte) (ops []int) {
	t.Helper()
	for len(b) > 0 {
		n := binary.NativeEndian.Uint32(b)
		if n < requestHeader || int(n) > len(b) {
			t.Fatalf("a request of %d bytes in %d", n, len(b))
		}
		op := int(binary.NativeEndian.Uint32(b[4:]))
		if binary.NativeEndian.Uint64(b[8:]) == 0 {
			op = -op
		}
		ops, b = append(ops, op), b[n:]
	}
	return ops
}

// startRequests relays what is written to the returned file, which is as /dev/fuse is in that it keeps messages apart.
func startRequests(t *testing.T, unanswered bool) (dev *os.File, m *Mount, sent pieces, end func()) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	dev = os.NewFile(uintptr(fds[0]), "dev")
	eager, err := transport.NewEagerness(1).Adopt(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	m = &Mount{dev: eager, ahead: ahead{changing: map[uint64]struct{}{}}}
	sent = make(pieces, 100)
	done := make(chan error, 1)
	go func() { done <- m.requests(sent, unanswered) }()
	end = func() {
		m.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		dev.Close()
	}
	return dev, m, sent, end
}

func write(t *testing.T, dev io.Writer, requests ...[]byte) {
	t.Helper()
	for _, r := range requests {
		if _, err := dev.Write(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHeld: what nobody waits for is sent in front of the next request or by itself, in the kernel's order, and the kernel has its
// answer before that.
func TestHeld(t *testing.T) {
	dev, _, sent, end := startRequests(t, true)
	defer end()
	write(t, dev, asked(opRelease, 2, 1), asked(opForget, 3, 1), asked(opReleaseDir, 4, 1), asked(opBatchForget, 5, 0), asked(opLookup, 6, 1))
	for _, unique := range []uint64{2, 4} {
		b := make([]byte, 100)
		if n, err := dev.Read(b); err != nil || !bytes.Equal(b[:n], answerOf(minMessage, unique)) {
			t.Errorf("the kernel is told %x, %v", b[:n], err)
		}
	}
	var got []int
	for len(got) < 5 {
		got = append(got, operations(t, <-sent)...)
	}
	if want := []int{-opRelease, -opForget, -opReleaseDir, -opBatchForget, opLookup}; !slices.Equal(got, want) {
		t.Errorf("sent were %v, want %v", got, want)
	}
	write(t, dev, asked(opForget, 7, 1))
	if got := operations(t, <-sent); !slices.Equal(got, []int{-opForget}) {
		t.Errorf("by itself went %v", got)
	}
}

// TestNotHeld: a server that does not know of requests without a number gets each at once, and answers it.
func TestNotHeld(t *testing.T) {
	dev, _, sent, end := startRequests(t, false)
	defer end()
	write(t, dev, asked(opRelease, 2, 1), asked(opForget, 3, 1))
	for _, want := range []int{opRelease, opForget} {
		if got := operations(t, <-sent); !slices.Equal(got, []int{want}) {
			t.Errorf("sent were %v, want %d", got, want)
		}
	}
}

// TestHeldIsBounded: time and bytes bound what is held, and no request is read into less room than the kernel wants or more than
// the server takes.
func TestHeldIsBounded(t *testing.T) {
	o := newOutgoing()
	now := time.Unix(1, 0)
	clock := func() time.Time { return now }
	release := asked(opRelease, 2, 1, 1, 2, 3, 4, 5, 6)
	n := 0
	for ; ; n++ {
		if len(o.room()) != agentv1.MaxShareFrame {
			t.Fatalf("%d bytes of room for a request", len(o.room()))
		}
		if !o.hold(o.room()[:copy(o.room(), release)], clock) {
			break
		}
		if left := o.patience(now); left != max(0, heldFor-time.Duration(n)*time.Millisecond) {
			t.Errorf("after %d ms there are %v left", n, left)
		}
		now = now.Add(time.Millisecond)
	}
	b := o.all(len(release))
	if len(b) != (n+1)*len(release) || len(b) <= maxHeld || n*len(release) > maxHeld || len(o.held) != 0 {
		t.Errorf("%d requests in %d bytes were held", n, len(b))
	}
	if got := operations(t, b); slices.Max(got) != -opRelease {
		t.Errorf("sent are %v", got)
	}
	if got := o.all(5); len(got) != 5 {
		t.Errorf("%d bytes are sent without anything held", len(got))
	}
}

// TestHeldAtTheEnd: what is held when the mount ends is dropped; the end is no error.
func TestHeldAtTheEnd(t *testing.T) {
	dev, m, _, end := startRequests(t, true)
	write(t, dev, asked(opRelease, 2, 1))
	m.Close()
	end()
}

// TestAnsweredHere: a question whose answer came ahead goes no further.
func TestAnsweredHere(t *testing.T) {
	dev, m, sent, end := startRequests(t, true)
	defer end()
	write(t, dev, asked(opCreate, 2, 1))
	<-sent
	known := notice(2, 1, 0)
	binary.NativeEndian.PutUint64(known[minMessage+16:], uint64(longest/time.Second)) // however slow this machine is
	if err := m.ahead.take(known, time.Now()); err != nil {
		t.Fatal(err)
	}
	write(t, dev, askedAttributes(1, 0))
	b := make([]byte, 200)
	if n, err := dev.Read(b); err != nil || n != minMessage+attrOut {
		t.Errorf("the kernel is told %x, %v", b[:n], err)
	}
	write(t, dev, askedAttributes(1, 0))
	if got := operations(t, <-sent); !slices.Equal(got, []int{opGetAttr}) {
		t.Errorf("sent were %v", got)
	}
}

// TestPlacedBehindHeld: data lies as aligned as without what is sent before it.
func TestPlacedBehindHeld(t *testing.T) {
	l, memory := newLoans(1)
	o := newOutgoing()
	release := asked(opRelease, 2, 1, 1, 2, 3)
	o.hold(o.room()[:copy(o.room(), release)], time.Now)
	data := bytes.Repeat([]byte("x"), leastPlaced)
	n := copy(o.room(), message(opWrite, 4, leastPlaced, data))
	placed := l.place(o.room()[:n])
	if !isPlaced(placed) || !bytes.Equal(memory.data[:leastPlaced], data) {
		t.Error("the data is not in memory")
	}
	b := o.all(len(placed))
	if len(b) != len(release)+fixed+agentv1.SharePlace || !isPlaced(b[len(release):]) {
		t.Errorf("%d bytes are sent", len(b))
	}
	if got := operations(t, b[:len(release)]); !slices.Equal(got, []int{-opRelease}) {
		t.Errorf("before it go %v", got)
	}
}
