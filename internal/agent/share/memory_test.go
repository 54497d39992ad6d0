package share

import (
	"bytes"
	"encoding/binary"
	"testing"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// message is a request to read or to write.
func message(op uint32, unique uint64, size uint32, data []byte) []byte {
	b := append(make([]byte, fixed, fixed+len(data)+agentv1.SharePlace), data...)
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

func newLoans(pieces int) *loans {
	return &loans{memory: NewMemory(make([]byte, pieces*pieceSize+1)), pieces: map[uint64]uint32{}}
}

// TestPlace: what is large gets a piece while there is one, and all else stays as it is.
func TestPlace(t *testing.T) {
	l := newLoans(2)
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
	if at := binary.NativeEndian.Uint32(got[fixed:]); at != 0 || !bytes.Equal(l.memory.data[:leastPlaced], data) || binary.NativeEndian.Uint32(got[fixed+4:]) != leastPlaced {
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
		l := newLoans(1)
		l.place(message(opRead, 7, leastPlaced, nil))
		copy(l.memory.data, "abc")
		buf := make([]byte, pieceSize+minMessage)
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

func TestNoMemory(t *testing.T) {
	l := &loans{pieces: map[uint64]uint32{}}
	if isPlaced(l.place(message(opRead, 1, pieceSize, nil))) {
		t.Error("placed in no memory")
	}
	if got, err := l.collect(answerOf(minMessage, 1), nil); err != nil || len(got) != minMessage {
		t.Error(got, err)
	}
}
