package share

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	opRead  = 15
	opWrite = 16
	// fixed is all of a request to read, and what of a request to write comes before the data; sizeAt is where either says how much.
	fixed  = requestHeader + 40
	sizeAt = requestHeader + 16
	// leastPlaced is the least data that is worth a place in memory.
	leastPlaced = 8 << 10
	// pieceSize holds the data of the largest message.
	pieceSize = agentv1.MaxShareWrite
)

// blocks are the memory as a file.
type blocks interface {
	// Ready tells whether it can be read and written by now. It does not wait.
	Ready() bool
	io.ReaderAt
	io.WriterAt
}

// Memory is what the guest has in common with the host's servers, for the data of large messages of all shares. It is lent
// in pieces; who gets none sends the data. A nil Memory has none.
type Memory struct {
	dev blocks

	mu   sync.Mutex
	free []uint32 // offsets of pieces; the last used is the next to be used
}

// NewMemory lends pieces of the first size bytes of dev, all of which the host has at the same offsets. They are read and written
// in multiples of align, from and to addresses that are such.
func NewMemory(dev blocks, size int) *Memory {
	m := &Memory{dev: dev}
	for at := size / pieceSize * pieceSize; at > 0; at -= pieceSize {
		m.free = append(m.free, uint32(at-pieceSize))
	}
	return m
}

// align is that of a file which is read and written past the kernel's cache.
const align = 4 << 10

// frameBuffer holds a message after so many bytes of others. Its data, which begins at the given place of it, is aligned.
func frameBuffer(before, data int) []byte {
	b := make([]byte, before+agentv1.MaxShareFrame+2*align)
	at := -(int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) + before + data) & (align - 1)
	return b[at : at+before+agentv1.MaxShareFrame]
}

// whole is b with what is behind it, up to a multiple of align.
func whole(b []byte) []byte {
	n := (len(b) + align - 1) &^ (align - 1)
	return b[:min(n, cap(b))]
}

func (m *Memory) take() (offset uint32, ok bool) {
	if m == nil || !m.dev.Ready() {
		return 0, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.free) == 0 {
		return 0, false
	}
	offset = m.free[len(m.free)-1]
	m.free = m.free[:len(m.free)-1]
	return offset, true
}

func (m *Memory) giveBack(offset uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free = append(m.free, offset)
}

// loans are the pieces of memory that a mount's requests have, by the requests' numbers. One that is never answered keeps its
// piece: the server may yet write there.
type loans struct {
	memory *Memory
	mu     sync.Mutex
	pieces map[uint64]uint32
}

// place makes of a large request one whose data is in memory, in the same buffer, if a piece is free and takes the data.
func (l *loans) place(request []byte) []byte {
	if len(request) < fixed {
		return request
	}
	op, size := binary.NativeEndian.Uint32(request[4:]), binary.NativeEndian.Uint32(request[sizeAt:])
	data := request[fixed:]
	switch {
	case size < leastPlaced || size > pieceSize:
		return request
	case op == opRead && len(data) == 0, op == opWrite && len(data) == int(size):
	default:
		return request
	}
	offset, ok := l.memory.take()
	if !ok {
		return request
	}
	if len(data) > 0 {
		if _, err := l.memory.dev.WriteAt(whole(data), int64(offset)); err != nil {
			l.memory.giveBack(offset)
			return request
		}
	}
	l.mu.Lock()
	l.pieces[binary.NativeEndian.Uint64(request[8:])] = offset
	l.mu.Unlock()
	request = binary.NativeEndian.AppendUint32(request[:fixed], offset)
	request = binary.NativeEndian.AppendUint32(request, size)
	binary.NativeEndian.PutUint32(request, uint32(len(request))|agentv1.ShareInMemory)
	return request
}

// collect makes of an answer what the kernel takes, in buf, whose beginning the answer is. Data that cannot be read is an error
// for who asked for it.
func (l *loans) collect(answer, buf []byte) ([]byte, error) {
	unique := binary.NativeEndian.Uint64(answer[8:])
	l.mu.Lock()
	offset, lent := l.pieces[unique]
	delete(l.pieces, unique)
	l.mu.Unlock()
	if lent {
		defer l.memory.giveBack(offset)
	}
	if binary.NativeEndian.Uint32(answer)&agentv1.ShareInMemory == 0 {
		return answer, nil
	}
	if !lent || len(answer) != minMessage+agentv1.ShareCount {
		return nil, fmt.Errorf("an answer of %d bytes says that its data is in memory", len(answer))
	}
	n := binary.NativeEndian.Uint32(answer[minMessage:])
	if n > pieceSize {
		return nil, fmt.Errorf("an answer with %d bytes in memory: %d are possible", n, pieceSize)
	}
	answer = buf[:minMessage+n]
	if _, err := l.memory.dev.ReadAt(whole(answer[minMessage:]), int64(offset)); err != nil {
		failed := int32(unix.EIO)
		answer = answer[:minMessage]
		binary.NativeEndian.PutUint32(answer[4:], uint32(-failed))
	}
	binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
	return answer, nil
}
