package share

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/share/ahead"
)

const (
	// MaxWrite bounds the data of one message in bytes, maxFrame a whole message.
	MaxWrite = agentv1.MaxShareWrite
	maxFrame = MaxWrite + 4<<10

	// spareWorkers wait for requests; maxWorkers bounds those that are busy, which may hang in a file system that
	// does not answer.
	spareWorkers = 3
	maxWorkers   = 64

	headerSize = 40
	replySize  = 16
	// smallFrame is what nearly all messages but reads and writes fit into.
	smallFrame = 8 << 10
)

// The operations that need to be told apart here; the numbers are FUSE's.
const (
	opLookup      = 1
	opForget      = 2
	opRead        = 15
	opWrite       = 16
	opFsync       = 20
	opGetXAttr    = 22
	opListXAttr   = 23
	opFlush       = 25
	opInit        = 26
	opReadDir     = 28
	opFsyncDir    = 30
	opInterrupt   = 36
	opNotifyReply = 41
	opBatchForget = 42
	opFallocate   = 43
	opReadDirPlus = 44
	opLseek       = 46
	opCopyRange   = 47
)

// served tells an operation that this server answers. Locks are not among them: they are the guest's own affair.
func served(op uint32) bool {
	switch op {
	case 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, opRead, opWrite, 17, 18, opFsync, 21, opGetXAttr, opListXAttr, 24, opFlush, opInit, 27, opReadDir,
		29, opFsyncDir, 35, opInterrupt, 38, opBatchForget, opFallocate, opReadDirPlus, 45, opLseek, opCopyRange:
		return true
	}
	return false
}

// session serves one share over one stream.
type session struct {
	stream io.ReadWriteCloser
	in     *bufio.Reader
	server ahead.Server
	common common
	big    sync.Pool // buffers of maxFrame bytes

	reading reading
	writing sync.Mutex // one writes
	work    sync.WaitGroup

	// repeated has the guest's answer to a change that it was told of; ended is closed when nothing is read any more.
	repeated, ended chan struct{}

	mu      sync.Mutex
	workers int
	idle    int // workers that read or wait to read
	err     error
}

// serve answers the requests on a stream, which have up to maxWrite bytes of data, until it ends, and closes it. It returns when
// nothing works on a request any more. Changes of a watched share are told on the same stream.
func serve(stream io.ReadWriteCloser, fs fuse.RawFileSystem, maxWrite int, memory memory) error {
	s := &session{
		stream: stream, common: common{memory, fs}, in: bufio.NewReaderSize(stream, smallFrame),
		repeated: make(chan struct{}, 1), ended: make(chan struct{}), reading: reading{wake: make(chan struct{}, 1)},
		server: ahead.NewServer(fs, maxWrite),
		big:    sync.Pool{New: func() any { b := make([]byte, maxFrame); return &b }},
	}
	if f, ok := fs.(*files); ok {
		s.server.Tells = f.ahead
	}
	defer stream.Close()
	if err := s.begin(); err != nil {
		return err
	}
	s.work.Go(s.watch)
	s.spawn()
	if w, ok := fs.(*watched); ok {
		s.work.Go(func() { s.announce(w.mirror) })
	}
	s.work.Wait()
	return s.err
}

// begin answers INIT alone: what it agrees on holds for all others.
func (s *session) begin() error {
	small := make([]byte, smallFrame)
	frame, free, err := s.read(small)
	if err != nil {
		return err
	}
	defer free()
	if inMemory(frame) {
		return errors.New("the first request has its data in memory")
	}
	if opcode(frame) != opInit {
		return fmt.Errorf("the first request is operation %d and not INIT", opcode(frame))
	}
	return s.answer(frame, make([]byte, smallFrame))
}

func (s *session) spawn() {
	s.mu.Lock()
	s.workers++
	s.idle++
	s.mu.Unlock()
	s.work.Go(s.serveRequests)
}

// serveRequests is a worker.
func (s *session) serveRequests() {
	in, out := make([]byte, smallFrame), make([]byte, smallFrame)
	s.reading.Lock()
	for {
		frame, free, err := s.read(in)
		if err != nil {
			s.reading.Unlock()
			s.end(err)
			return
		}
		reads := brief(frame) && (s.in.Buffered() == 0 || unanswered(frame))
		if reads {
			turn := s.reading.begin()
			err = s.handle(frame, out)
			reads = s.reading.end(turn)
		} else {
			s.letRead()
			err = s.handle(frame, out)
		}
		free()
		switch {
		case err != nil:
			if reads {
				s.reading.Unlock()
			}
			s.end(err)
			return
		case !reads && !s.wait():
			return
		}
	}
}

// letRead has another worker read in place of the one that does. It is started where none waits: requests are always read,
// whatever the others hang in, up to maxWorkers.
func (s *session) letRead() {
	s.mu.Lock()
	s.idle--
	more := s.idle == 0 && s.workers < maxWorkers
	s.mu.Unlock()
	if more {
		s.spawn()
	}
	s.reading.Unlock()
}

// wait waits until the worker may read. False: enough of them wait.
func (s *session) wait() bool {
	s.mu.Lock()
	if s.idle >= spareWorkers {
		s.workers--
		s.mu.Unlock()
		return false
	}
	s.idle++
	s.mu.Unlock()
	s.reading.Lock()
	return true
}

// end closes the stream, so that all workers end.
func (s *session) end(err error) {
	s.mu.Lock()
	if s.err == nil && err != io.EOF {
		s.err = err
	}
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
	s.mu.Unlock()
	s.stream.Close()
}

// read, which the reader calls, reads one message into small, or into a larger buffer that free gives back.
func (s *session) read(small []byte) (frame []byte, free func(), err error) {
	if _, err := io.ReadFull(s.in, small[:4]); err != nil {
		return nil, nil, err
	}
	n := binary.NativeEndian.Uint32(small)
	if s.common.memory != nil {
		n &^= agentv1.ShareInMemory
	}
	if n < headerSize || n > maxFrame {
		return nil, nil, fmt.Errorf("a request of %d bytes: %d to %d are possible", n, headerSize, maxFrame)
	}
	frame, free = small, func() {}
	if n > smallFrame {
		b := s.big.Get().(*[]byte)
		frame, free = *b, func() { s.big.Put(b) }
		copy(frame, small[:4])
	}
	if _, err := io.ReadFull(s.in, frame[4:n]); err != nil {
		free()
		return nil, nil, err
	}
	return frame[:n], free, nil
}

// inMemory tells a message whose data is in memory.
func inMemory(frame []byte) bool { return binary.NativeEndian.Uint32(frame)&agentv1.ShareInMemory != 0 }

// unanswered tells a request whose sender wants no answer: it has no number.
func unanswered(frame []byte) bool { return binary.NativeEndian.Uint64(frame[8:]) == 0 }

func opcode(frame []byte) uint32 { return binary.NativeEndian.Uint32(frame[4:]) }

// handle answers one request after the first.
func (s *session) handle(frame, small []byte) error {
	if opcode(frame) == opNotifyReply {
		select {
		case s.repeated <- struct{}{}:
		default: // nobody has asked for it
		}
		return nil
	}
	if inMemory(frame) {
		return s.handlePlaced(frame, small)
	}
	if code := s.screen(frame); !code.Ok() {
		return s.refuse(frame, code)
	}
	size := replySize + 512 + payload(frame)
	if size > maxFrame {
		return s.refuse(frame, fuse.EINVAL)
	}
	if size <= smallFrame {
		return s.answer(frame, small)
	}
	b := s.big.Get().(*[]byte)
	defer s.big.Put(b)
	return s.answer(frame, *b)
}

// screen refuses what the protocol library must not see: operations that are not served, a second INIT, extensions
// that were not agreed on, and the file that the library adds to every root for its own purposes.
func (s *session) screen(frame []byte) fuse.Status {
	op := opcode(frame)
	node := binary.NativeEndian.Uint64(frame[16:])
	switch {
	case !served(op):
		return fuse.ENOSYS
	case op == opInit, binary.NativeEndian.Uint16(frame[36:]) != 0:
		return fuse.EINVAL
	case node == ^uint64(0):
		return fuse.Status(unix.ESTALE)
	case op == opLookup && bytes.HasPrefix(frame[headerSize:], []byte(".go-fuse-epoll-hack\x00")):
		return fuse.ENOENT
	}
	return fuse.OK
}

// payload is how many bytes a request wants at most beside the fixed part of the answer.
func payload(frame []byte) int {
	at := 0
	switch opcode(frame) {
	case opRead, opReadDir, opReadDirPlus:
		at = headerSize + 16
	case opGetXAttr, opListXAttr:
		at = headerSize
	case 5: // READLINK
		return maxTarget
	default:
		return 0
	}
	if len(frame) < at+4 {
		return 0
	}
	// A size that no frame holds is refused, whatever it is.
	return int(min(binary.NativeEndian.Uint32(frame[at:]), 2*maxFrame))
}

// answer has the library handle a request, and sends what it says.
func (s *session) answer(request, out []byte) error {
	answer, code := s.server.Handle(request, out)
	if len(answer) == 0 && !code.Ok() {
		return s.refuse(request, code) // it was malformed
	}
	return s.reply(request, answer)
}

// refuse sends an error, where the request is one that is answered.
func (s *session) refuse(frame []byte, code fuse.Status) error {
	if slices.Contains([]uint32{opForget, opBatchForget, opInterrupt, opNotifyReply}, opcode(frame)) {
		return nil
	}
	var b [replySize]byte
	binary.NativeEndian.PutUint32(b[:], replySize)
	binary.NativeEndian.PutUint32(b[4:], uint32(-int32(code)))
	copy(b[8:], frame[8:16])
	return s.reply(frame, b[:])
}

// reply sends the answer to a request, if its sender wants one.
func (s *session) reply(request, answer []byte) error {
	if unanswered(request) {
		return nil
	}
	return s.send(answer)
}

func (s *session) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	_, err := s.stream.Write(b)
	return err
}
