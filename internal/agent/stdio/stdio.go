package stdio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/stdio"
)

const (
	// bufferSize is what one stream holds in memory.
	bufferSize = 64 << 10
	// littleOutput is what is not worth a frame of its own while a process goes on writing, and gatherTime how long
	// what follows it is gathered. A frame costs the guest exits and interrupts; a process that writes line by
	// line would pay them for every line.
	littleOutput = bufferSize / 2
	gatherTime   = 5 * time.Millisecond
)

// duplex is a stream that can be closed for writing alone.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// Set is the stdio of one process.
type Set struct {
	*stdio.Ends
	has [3]bool

	mu       sync.Mutex
	attached [3]bool
	closed   bool
}

// NewPipes returns a set of pipes; without stdin the process reads /dev/null.
func NewPipes(stdin bool) (*Set, error) {
	has := [3]bool{stdin, true, true}
	ends, err := stdio.NewPipes(has)
	return &Set{Ends: ends, has: has}, err
}

// NewTerminal returns a set whose terminal comes with SetConsole when the process is made.
func NewTerminal(stdin bool) *Set {
	return &Set{Ends: stdio.NewTerminal(), has: [3]bool{stdin, true, false}}
}

// Claim reserves a descriptor for one stream.
func (s *Set) Claim(fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case fd < stdio.Stdin || fd > stdio.Stderr:
		return fmt.Errorf("descriptor %d: there are 0, 1 and 2: %w", fd, errdefs.ErrInvalidArgument)
	case !s.has[fd]:
		return fmt.Errorf("descriptor %d: the process has none: %w", fd, errdefs.ErrFailedPrecondition)
	case s.closed:
		return fmt.Errorf("descriptor %d: the process was deleted: %w", fd, errdefs.ErrFailedPrecondition)
	case s.attached[fd]:
		return fmt.Errorf("descriptor %d: it has a stream already: %w", fd, errdefs.ErrAlreadyExists)
	}
	s.attached[fd] = true
	return nil
}

// Serve copies between a claimed descriptor and a stream until both have ended, and closes the stream.
func (s *Set) Serve(fd int, conn duplex) {
	defer conn.Close()
	<-s.Ready()
	switch f := s.Ours(fd); {
	case f == nil: // deleted before its terminal came
		_ = conn.CloseWrite()
	case fd == stdio.Stdin:
		s.serveInput(f, conn)
	default:
		serveOutput(f, conn)
	}
}

// serveInput copies until the host half-closes, which ends the process's input unless that is a terminal, or
// the process reads no more: then the host learns it as a broken stream.
func (s *Set) serveInput(f *os.File, conn duplex) {
	_, _ = copyBytes(f, conn)
	s.CloseInput()
}

// serveOutput copies until all writers have closed the descriptor. When the host goes away first the rest is
// thrown away, so that the process is not blocked for ever.
func serveOutput(f *os.File, conn duplex) {
	if _, err := copyBytes(conn, &gatherer{from: f}); err != nil && !isEnd(err) {
		_, _ = copyBytes(io.Discard, f)
	}
	_ = conn.CloseWrite()
}

// gatherer reads output. The first that comes is read at once; after a little of it the next read waits a moment, in
// which the pipe gathers more. No event tells how full a pipe is.
type gatherer struct {
	from io.Reader
	wait bool
}

func (g *gatherer) Read(p []byte) (int, error) {
	if g.wait {
		time.Sleep(gatherTime)
	}
	n, err := g.from.Read(p)
	g.wait = n < littleOutput
	return n, err
}

// copyBytes hides what else the two can do: io.Copy would splice, or take a buffer of another size.
func copyBytes(w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, bufferSize))
}

// isEnd tells the end of a terminal (EIO) and of a set that was closed from a broken stream.
func isEnd(err error) bool {
	var pathError *os.PathError
	return errors.As(err, &pathError) && (errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed))
}

// Close gives up everything, also output that no stream has taken.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Ends.Close()
}
