package server

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/stdio"
)

const (
	// drainTime is how long the output of a process that has ended is waited for: somebody outside of the container may
	// hold it open. What the process itself has left in the pipe is read in any case.
	drainTime = 10 * time.Second
	// maxLeftover bounds what is shown of what a runtime that failed has said outside of its log.
	maxLeftover = 2 << 10
	// bufferSize is that of one read of output.
	bufferSize = 32 << 10
)

// streams carry the stdio of a container from its creation to its deletion.
type streams struct {
	ends    *stdio.Ends
	log     *stdio.Log // nil: none
	fanout  stdio.Fanout
	buffers *buffers

	stdin   bool
	inMu    sync.Mutex // two attached clients take turns by the frame
	exiting atomic.Bool
	pumps   sync.WaitGroup
}

// openStreams opens log and pipes of a container to be started; FIFOs in dir where that is not empty.
func openStreams(terminal, stdin bool, logPath, dir string, b *buffers) (_ *streams, err error) {
	s := &streams{stdin: stdin, buffers: b}
	if logPath != "" {
		if s.log, err = stdio.OpenLog(logPath); err != nil {
			return nil, err
		}
	}
	switch {
	case dir != "":
		s.ends, err = stdio.NewFIFOs(dir, [3]bool{stdin, true, !terminal}, terminal)
	case terminal:
		s.ends = stdio.NewTerminal()
	default:
		s.ends, err = stdio.NewPipes([3]bool{stdin, true, true})
	}
	if err != nil {
		return nil, errors.Join(err, s.closeLog())
	}
	return s, nil
}

// start reads the output from now on. console is the terminal's master where there is one.
func (s *streams) start(console *os.File) {
	s.ends.CloseChild()
	if console != nil {
		s.ends.SetConsole(console)
	}
	for fd, kind := range []stdio.FrameKind{stdio.Stdout: stdio.KindStdout, stdio.Stderr: stdio.KindStderr} {
		f := s.ends.Ours(fd)
		if fd == stdio.Stdin || f == nil {
			continue
		}
		s.pumps.Go(func() { s.pump(f, kind) })
	}
}

// pump takes one output until its end.
func (s *streams) pump(f *os.File, kind stdio.FrameKind) {
	var record *stdio.LogStream
	if s.log != nil {
		record = s.log.Stream([]string{stdio.KindStdout: "stdout", stdio.KindStderr: "stderr"}[kind])
		defer record.Close()
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	sink := func(p []byte) {
		if record != nil {
			record.Write(p)
		}
		s.fanout.Write(kind, p)
	}
	for {
		err := s.read(raw, sink)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.rest(raw, sink)
		}
		if err != nil {
			return
		}
	}
}

// read waits for output and takes what there is. It holds a buffer only while it has something in it, so that a silent
// container costs none.
func (s *streams) read(raw syscall.RawConn, sink func([]byte)) error {
	var failed error
	err := raw.Read(func(fd uintptr) bool {
		var n int
		n, failed = s.readOnce(int(fd), sink)
		return n > 0 || failed != unix.EAGAIN
	})
	return errors.Join(err, failed)
}

// rest takes what is in a pipe that somebody holds open, which is not more than fits into it.
func (s *streams) rest(raw syscall.RawConn, sink func([]byte)) {
	_ = raw.Control(func(fd uintptr) {
		for taken := 0; taken < stdio.PipeSize; {
			n, err := s.readOnce(int(fd), sink)
			if err != nil {
				return
			}
			taken += n
		}
	})
}

var errEnd = errors.New("end of the output")

// readOnce reads without waiting; EAGAIN where there is nothing yet.
func (s *streams) readOnce(fd int, sink func([]byte)) (int, error) {
	buf := s.buffers.get()
	defer s.buffers.put(buf)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil: // EIO is the end of a terminal
			return 0, err
		case n <= 0:
			return 0, errEnd
		}
		sink(buf[:n])
		return n, nil
	}
}

// drain waits until the output of a process that has ended was taken, tells the viewers and closes our ends.
func (s *streams) drain() {
	for _, fd := range []int{stdio.Stdout, stdio.Stderr} {
		if f := s.ends.Ours(fd); f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drainTime)) // fails where it was closed
		}
	}
	s.pumps.Wait()
	s.close()
}

// close tells the viewers that there is no more and closes our ends. The log stays open.
func (s *streams) close() {
	s.fanout.Close()
	s.ends.Close()
}

func (s *streams) reopenLog() error {
	if s.log == nil {
		return nil
	}
	return s.log.Reopen()
}

func (s *streams) closeLog() error {
	if s.log == nil {
		return nil
	}
	return s.log.Close()
}

// leftover is what a runtime that failed has said on the process's stderr, which is nobody's then.
func (s *streams) leftover() string {
	s.ends.CloseChild()
	f := s.ends.Ours(stdio.Stderr)
	if f == nil {
		return ""
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	var text []byte
	_ = raw.Control(func(fd uintptr) {
		_, _ = s.readOnce(int(fd), func(p []byte) { text = append(text, p[:min(len(p), maxLeftover)]...) })
	})
	return string(text)
}

// CloseStdin ends the input, unless that is a terminal.
func (s *streams) CloseStdin() { s.ends.CloseInput() }

// WriteStdin gives input to the process. It blocks until there is one, and while that does not read.
func (s *streams) WriteStdin(b []byte) error {
	<-s.ends.InputReady()
	f := s.ends.Ours(stdio.Stdin)
	if f == nil {
		return fmt.Errorf("stdin: %w", errdefs.ErrFailedPrecondition)
	}
	s.inMu.Lock()
	defer s.inMu.Unlock()
	_, err := f.Write(b)
	return err
}

// buffers are shared by all pumps of a monitor.
type buffers struct {
	mu   sync.Mutex
	free [][]byte
}

// maxFree is how many buffers are kept for the next reads. Output of a container that is silent holds none.
const maxFree = 1

func (b *buffers) get() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.free); n > 0 {
		buf := b.free[n-1]
		b.free = b.free[:n-1]
		return buf
	}
	return make([]byte, bufferSize)
}

func (b *buffers) put(buf []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) < maxFree {
		b.free = append(b.free, buf)
	}
}
