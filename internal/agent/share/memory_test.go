package share

import (
	"bytes"
	"encoding/binary"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// message is a request to read or to write.
func message(op uint32, unique uint64, size uint32, data []byte) []byte {
	b := append(frameBuffer(0, fixed)[:fixed], data...)
	clear(b[:fixed])
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], op)
	binary.NativeEndian.PutUint64(b[8:], unique)
	binary.NativeEndian.PutUint32(b[sizeAt:], size)
	return b
}

func answerOf(length uint32, unique uint64, rest ...uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, length)
	b = binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint32(b, 0), unique)
	for _, v := range rest {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func isPlaced(b []byte) bool { return binary.NativeEndian.Uint32(b)&agentv1.ShareInMemory != 0 }

// aligned is memory that takes what a file takes that is read and written past the kernel's cache; broken takes nothing, and absent
// is not there.
type aligned struct {
	data           []byte
	broken, absent bool
}

func (a *aligned) Ready() bool { return !a.absent }

func (a *aligned) part(b []byte, at int64) ([]byte, error) {
	if a.broken || (int64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))|int64(len(b))|at)%align != 0 {
		return nil, unix.EINVAL
	}
	return a.data[at:], nil
}

func (a *aligned) ReadAt(b []byte, at int64) (int, error) {
	part, err := a.part(b, at)
	return copy(b, part), err
}

func (a *aligned) WriteAt(b []byte, at int64) (int, error) {
	part, err := a.part(b, at)
	return copy(part, b), err
}

func newLoans(pieces int) (*loans, *aligned) {
	const size = pieceSize + 1
	memory := &aligned{data: make([]byte, pieces*size)}
	return &loans{memory: NewMemory(memory, len(memory.data)), pieces: map[uint64]uint32{}}, memory
}

// TestPlace: what is large gets a piece while there is one, and all else stays as it is.
func TestPlace(t *testing.T) {
	l, memory := newLoans(2)
	data := bytes.Repeat([]byte("x"), leastPlaced)
	for name, b := range map[string][]byte{
		"small read": message(opRead, 1, leastPlaced-1, nil), "small write": message(opWrite, 1, leastPlaced-1, data[1:]), "other": message(3, 1, leastPlaced, nil),
		"huge": message(opRead, 1, pieceSize+1, nil), "write of less": message(opWrite, 1, leastPlaced+1, data), "read with data": message(opRead, 1, leastPlaced, data),
		"short": make([]byte, requestHeader),
	} {
		if got := l.place(bytes.Clone(b)); !bytes.Equal(got, b) || len(l.memory.free) != 2 {
			t.Errorf("%s is placed", name)
		}
	}
	got := l.place(message(opWrite, 7, leastPlaced, data))
	if want := uint32(fixed + agentv1.SharePlace); !isPlaced(got) || uint32(len(got)) != want || binary.NativeEndian.Uint32(got)&^agentv1.ShareInMemory != want {
		t.Fatalf("a write became %d bytes", len(got))
	}
	if at := binary.NativeEndian.Uint32(got[fixed:]); at != 0 || !bytes.Equal(memory.data[:leastPlaced], data) || binary.NativeEndian.Uint32(got[fixed+4:]) != leastPlaced {
		t.Errorf("the data is not at %d", at)
	}
	if !isPlaced(l.place(message(opRead, 9, pieceSize, nil))) || isPlaced(l.place(message(opRead, 11, pieceSize, nil))) {
		t.Error("two pieces are lent once each")
	}
	if got, err := l.collect(answerOf(minMessage, 7), nil); err != nil || len(got) != minMessage {
		t.Errorf("the answer to the write: %v, %v", got, err)
	}
	if !isPlaced(l.place(message(opRead, 13, pieceSize, nil))) {
		t.Error("a piece that was given back is not lent again")
	}
}

func TestCollect(t *testing.T) {
	const flagged = agentv1.ShareInMemory | (minMessage + agentv1.ShareCount)
	for name, tc := range map[string]struct {
		answer []byte
		want   string
		fails  bool
	}{
		"data":                {answer: answerOf(flagged, 7, 3), want: "abc"},
		"error":               {answer: answerOf(minMessage, 7)},
		"data in the message": {answer: append(answerOf(minMessage+2, 7), "xy"...), want: "xy"},
		"another's":           {answer: answerOf(flagged, 8, 3), fails: true},
		"no count":            {answer: answerOf(agentv1.ShareInMemory|minMessage, 7), fails: true},
		"too much":            {answer: answerOf(flagged, 7, pieceSize+1), fails: true},
	} {
		l, memory := newLoans(1)
		l.place(message(opRead, 7, leastPlaced, nil))
		copy(memory.data, "abc")
		buf := frameBuffer(0, minMessage)
		got, err := l.collect(buf[:copy(buf, tc.answer)], buf)
		if tc.fails {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
			continue
		}
		if err != nil || string(got[minMessage:]) != tc.want || int(binary.NativeEndian.Uint32(got)) != len(got) || len(l.memory.free) != 1 {
			t.Errorf("%s: %q, %v; %d pieces are free", name, got, err, len(l.memory.free))
		}
	}
}

// TestLargest: the largest message has room for what is read and written beyond its data.
func TestLargest(t *testing.T) {
	l, memory := newLoans(1)
	data := bytes.Repeat([]byte("y"), pieceSize-1)
	if !isPlaced(l.place(message(opWrite, 7, pieceSize-1, data))) || !bytes.Equal(memory.data[:pieceSize-1], data) {
		t.Error("a large write is not placed")
	}
	buf := frameBuffer(0, minMessage)
	got, err := l.collect(buf[:copy(buf, answerOf(agentv1.ShareInMemory|(minMessage+agentv1.ShareCount), 7, pieceSize-1))], buf)
	if err != nil || !bytes.Equal(got[minMessage:], data) {
		t.Errorf("a large read has %d bytes, %v", len(got), err)
	}
}

// TestBrokenMemory: what cannot be written there passes through the stream, and who asked for what cannot be read is told.
func TestBrokenMemory(t *testing.T) {
	l, memory := newLoans(1)
	memory.broken = true
	data := bytes.Repeat([]byte("x"), leastPlaced)
	if got := l.place(message(opWrite, 7, leastPlaced, data)); isPlaced(got) || !bytes.Equal(got[fixed:], data) || len(l.memory.free) != 1 {
		t.Error("a write is placed, or changed")
	}
	if !isPlaced(l.place(message(opRead, 9, leastPlaced, nil))) {
		t.Error("a read is not placed")
	}
	buf := frameBuffer(0, minMessage)
	got, err := l.collect(buf[:copy(buf, answerOf(agentv1.ShareInMemory|(minMessage+agentv1.ShareCount), 9, 3))], buf)
	want := answerOf(minMessage, 9)
	binary.NativeEndian.PutUint32(want[4:], ^uint32(unix.EIO)+1)
	if err != nil || !bytes.Equal(got, want) || len(l.memory.free) != 1 {
		t.Errorf("the answer is %v, %v", got, err)
	}
}

func TestNoMemory(t *testing.T) {
	l, memory := newLoans(1)
	memory.absent = true
	if isPlaced(l.place(message(opRead, 1, pieceSize, nil))) {
		t.Error("placed in memory that is absent")
	}
	l = &loans{pieces: map[uint64]uint32{}}
	if isPlaced(l.place(message(opRead, 1, pieceSize, nil))) {
		t.Error("placed in no memory")
	}
	if got, err := l.collect(answerOf(minMessage, 1), nil); err != nil || len(got) != minMessage {
		t.Error(got, err)
	}
}
