package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// Client is a connection to a monitor of QEMU.
type Client struct {
	conn   *net.UnixConn
	lines  *bufio.Reader
	reader sync.WaitGroup

	sending sync.Mutex // one message at a time

	mu       sync.Mutex
	lastID   uint64
	waiting  map[uint64]chan<- message
	watchers map[*watcher]struct{}
	err      error         // why reading ended
	done     chan struct{} // closed when err is set
}

type watcher struct {
	match func(Event) bool
	found chan Event
}

// New takes over the connection and negotiates: it waits for the greeting until ctx ends. watch, where set,
// is called with every event, from the client's own goroutine, which it must not block. On error the
// connection is closed; a peer that is no monitor, or has gone, gives errdefs.ErrUnavailable.
func New(ctx context.Context, conn *net.UnixConn, watch func(Event)) (*Client, error) {
	c := &Client{
		conn: conn, lines: bufio.NewReader(conn), done: make(chan struct{}),
		waiting: make(map[uint64]chan<- message), watchers: make(map[*watcher]struct{}),
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	m, err := readMessage(c.lines)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && m.Greeting == nil {
		err = errors.New("the first message is no greeting")
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("qmp: wait for the greeting: %w", errors.Join(err, conn.Close()))
	}
	c.reader.Go(func() { c.read(watch) })
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close ends the connection; commands that wait for an answer fail.
func (c *Client) Close() error {
	err := c.conn.Close()
	c.reader.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Execute runs a command and waits for its answer until ctx ends. args, where not nil, is encoded as its
// arguments; result, where not nil, receives what it returns. Descriptors of files are sent along; the files
// stay the caller's. A command that QEMU refuses gives an *Error.
func (c *Client) Execute(ctx context.Context, command string, args, result any, files ...*os.File) error {
	if err := c.execute(ctx, command, args, result, files); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	return nil
}

func (c *Client) execute(ctx context.Context, command string, args, result any, files []*os.File) error {
	answers := make(chan message, 1)
	c.mu.Lock()
	c.lastID++
	id := c.lastID
	c.waiting[id] = answers
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err := c.send(ctx, request{Execute: command, Arguments: args, ID: id}, files); err != nil {
		return err
	}
	select {
	case m := <-answers:
		if m.Error != nil {
			return m.Error
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fmt.Errorf("answer: %w: %w", err, errdefs.ErrInternal)
		}
		return nil
	case <-c.done:
		return c.gone()
	case <-ctx.Done():
		return fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
}

// gone says why the connection ended. It is called after done.
func (c *Client) gone() error {
	return fmt.Errorf("the monitor has gone (%w): %w", c.err, errdefs.ErrUnavailable)
}

// send writes one message. One that was written in part leaves a connection that is of no use any more.
func (c *Client) send(ctx context.Context, r request, files []*os.File) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	rights, unpin, err := rightsOf(files)
	if err != nil {
		return err
	}
	defer unpin()
	c.sending.Lock()
	defer c.sending.Unlock()
	select {
	case <-c.done:
		return c.gone()
	default:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.conn.SetWriteDeadline(time.Time{})
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		c.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-interrupted // or it would interrupt the next message
		}
	}()
	n, _, err := c.conn.WriteMsgUnix(body, rights, nil)
	if err == nil && n < len(body) {
		_, err = c.conn.Write(body[n:])
	}
	if err == nil {
		return nil
	}
	c.conn.Close()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("send: %w: %w", err, errdefs.ErrUnavailable)
}

// rightsOf encodes the descriptors of files, which live at least until unpin is called.
func rightsOf(files []*os.File) (rights []byte, unpin func(), err error) {
	if len(files) == 0 {
		return nil, func() {}, nil
	}
	var copies []int
	unpin = func() {
		for _, fd := range copies {
			syscall.Close(fd)
		}
	}
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			unpin()
			return nil, nil, err
		}
		var dupErr error
		err = raw.Control(func(fd uintptr) {
			var n uintptr
			var errno syscall.Errno
			n, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 0)
			if errno != 0 {
				dupErr = os.NewSyscallError("fcntl", errno)
				return
			}
			copies = append(copies, int(n))
		})
		if err = errors.Join(err, dupErr); err != nil {
			unpin()
			return nil, nil, err
		}
	}
	return syscall.UnixRights(copies...), unpin, nil
}

// Watch returns a channel that gets the first event, from now on, that match accepts. stop ends the watch.
func (c *Client) Watch(match func(Event) bool) (events <-chan Event, stop func()) {
	w := &watcher{match: match, found: make(chan Event, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers[w] = struct{}{}
	return w.found, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, w)
	}
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

func (c *Client) read(watch func(Event)) {
	defer close(c.done)
	for {
		m, err := readMessage(c.lines)
		if err != nil {
			if err == io.EOF {
				err = errors.New("it closed the connection")
			}
			c.err = err
			c.conn.Close()
			return
		}
		if m.Event != nil {
			c.dispatch(*m.Event, watch)
			continue
		}
		c.mu.Lock()
		answers := c.waiting[m.ID]
		delete(c.waiting, m.ID)
		c.mu.Unlock()
		if answers != nil {
			answers <- m
		}
	}
}

func (c *Client) dispatch(e Event, watch func(Event)) {
	if watch != nil {
		watch(e)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.watchers {
		if w.match(e) {
			delete(c.watchers, w)
			w.found <- e
		}
	}
}
