package share

import (
	"encoding/binary"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/transport"
)

// memory is what a share's guest and its server have in common: the data of large messages lies there, where the guest says,
// instead of passing through the stream. The guest may change it at any time, and some VMMs may make it smaller: it is touched
// by nothing but the system calls that read it from a file or write it there, which say so then.
type memory []byte

// mapMemory maps a file that is that, however large it is.
func mapMemory(fd int) (memory, error) {
	data, err := unix.Mmap(fd, 0, transport.MemorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory that the guest has too: %w", err)
	}
	return data, nil
}

// common is what messages need whose data may be in memory.
type common struct {
	memory // nil: all data passes through the stream
	fs     fuse.RawFileSystem
}

func (m memory) close() {
	if m != nil {
		_ = unix.Munmap(m) // it cannot fail: all of it was mapped
	}
}

// placedSize is a request to read or to write that says where in memory its data is: both have 40 bytes of their own.
const placedSize = headerSize + 40 + agentv1.SharePlace

// place takes from a request the end, which says where its data is.
func (m memory) place(frame []byte) (request, data []byte, err error) {
	if op := opcode(frame); len(frame) != placedSize || op != opRead && op != opWrite {
		return nil, nil, fmt.Errorf("operation %d with %d bytes has no data in memory", op, len(frame))
	}
	request, end := frame[:placedSize-agentv1.SharePlace], frame[placedSize-agentv1.SharePlace:]
	offset, length := uint64(binary.NativeEndian.Uint32(end)), uint64(binary.NativeEndian.Uint32(end[4:]))
	if length > MaxWrite || offset+length > uint64(len(m)) {
		return nil, nil, fmt.Errorf("a request with %d bytes at %d of a memory of %d", length, offset, len(m))
	}
	return request, m[offset : offset+length : offset+length], nil
}

// handlePlaced answers a request whose data is, or shall be, in memory.
func (s *session) handlePlaced(frame, small []byte) error {
	request, data, err := s.common.place(frame)
	if err != nil {
		return err
	}
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	if code := s.screen(request); !code.Ok() {
		return s.refuse(request, code)
	}
	if opcode(request) == opWrite {
		return s.writePlaced(request, data)
	}
	if payload(request) > len(data) {
		return s.refuse(request, fuse.EINVAL)
	}
	// The library copies what was read to where it lies already, which touches nothing.
	n, code := s.server.HandleRequest([][]byte{request}, [][]byte{small[:replySize], data})
	switch {
	case n == 0 && !code.Ok():
		return s.refuse(request, code)
	case n > replySize:
		binary.NativeEndian.PutUint32(small, agentv1.ShareInMemory|(replySize+agentv1.ShareCount))
		binary.NativeEndian.PutUint32(small[replySize:], uint32(n-replySize))
		n = replySize + agentv1.ShareCount
	}
	return s.reply(request, small[:n])
}

// writePlaced answers a request to write without the protocol library, which looks at the beginning of the data.
func (s *session) writePlaced(request, data []byte) error {
	in := fuse.WriteIn{
		Fh: binary.NativeEndian.Uint64(request[headerSize:]), Offset: binary.NativeEndian.Uint64(request[headerSize+8:]),
		Size: binary.NativeEndian.Uint32(request[headerSize+16:]), WriteFlags: binary.NativeEndian.Uint32(request[headerSize+20:]),
	}
	in.NodeId = binary.NativeEndian.Uint64(request[16:])
	n, code := s.common.fs.Write(nil, &in, data)
	if !code.Ok() {
		return s.refuse(request, code)
	}
	answer := make([]byte, replySize+8) // the count, and padding
	binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
	copy(answer[8:], request[8:16])
	binary.NativeEndian.PutUint32(answer[replySize:], n)
	return s.reply(request, answer)
}
