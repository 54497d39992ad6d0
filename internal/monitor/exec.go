package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	// copyBuffer is the size of one read of an exec's streams.
	copyBuffer = 32 << 10
	// drainIdle is how long the output of an exec that has ended may stay silent before it is cut: somebody who outlived
	// the process holds it open.
	drainIdle = 10 * time.Second
)

// execution is an exec of this client, with its stdio. The monitor learns of it when it starts, and kills it when the
// connection of that call ends before the process.
type execution struct {
	req  task.ExecRequest
	ends *stdio.Ends
	// ended is closed when exit is known, or err says why it will not be.
	ended chan struct{}
	// drained is closed when Attach has taken all output.
	drained chan struct{}
	exited  atomic.Bool

	mu                sync.Mutex
	started, attached bool
	conn              *Conn // nil before the start
	exit              task.Exit
	err               error
}

// Exec registers a further process. Its stdio is joined with Attach, and Start runs it; until then nobody but this client
// knows it. The process must name its user.
func (c *Client) Exec(_ context.Context, req task.ExecRequest) (err error) {
	if !ValidID(req.ID.Container) || !ValidID(req.ID.Exec) {
		return fmt.Errorf("exec %q in container %q: ids have letters, digits and _.+- in them: %w", req.ID.Exec, req.ID.Container, errdefs.ErrInvalidArgument)
	}
	var process struct {
		User json.RawMessage `json:"user"`
	}
	if err := json.Unmarshal(req.Process, &process); err != nil {
		return fmt.Errorf("%s: process: %w: %w", name(req.ID), err, errdefs.ErrInvalidArgument)
	}
	if process.User == nil {
		return fmt.Errorf("%s: the process names no user: %w", name(req.ID), errdefs.ErrInvalidArgument)
	}
	e := &execution{req: req, ended: make(chan struct{}), drained: make(chan struct{})}
	if req.Terminal {
		e.ends = stdio.NewTerminal()
	} else if e.ends, err = stdio.NewPipes([3]bool{req.Stdin, req.Stdout, req.Stderr}); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[req.ID] != nil {
		e.ends.Close()
		return fmt.Errorf("%s: %w", name(req.ID), errdefs.ErrAlreadyExists)
	}
	c.execs[req.ID] = e
	return nil
}

// execution finds an exec of this client; nil when it has none.
func (c *Client) execution(id task.ID) *execution {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.execs[id]
}

// forget lets go of an exec, and kills it where it runs.
func (c *Client) forget(e *execution) {
	c.mu.Lock()
	if c.execs[e.req.ID] == e {
		delete(c.execs, e.req.ID)
	}
	c.mu.Unlock()
	e.ends.Close()
	e.mu.Lock()
	conn := e.conn
	e.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	e.finish(task.Exit{}, fmt.Errorf("%s was deleted: %w", name(e.req.ID), errdefs.ErrNotFound))
}

// startExec gives the process its descriptors and closes them here, so that the end of its output is seen. The connection
// stays open for the exit.
func (c *Client) startExec(ctx context.Context, id task.ID) (uint32, error) {
	e := c.execution(id)
	if e == nil {
		return 0, fmt.Errorf("%s: %w", name(id), errdefs.ErrNotFound)
	}
	if err := e.claim(&e.started); err != nil {
		return 0, err
	}
	pid, err := c.runExec(ctx, e)
	if err != nil {
		e.ends.Close()
		e.finish(task.Exit{}, err)
	}
	return pid, err
}

func (c *Client) runExec(ctx context.Context, e *execution) (uint32, error) {
	if err := e.writeProcess(c.dir); err != nil {
		return 0, err
	}
	defer os.Remove(ProcessFile(c.dir, e.req.ID))
	args := ExecArgs{Terminal: e.req.Terminal}
	var files []*os.File
	for fd, f := range e.ends.Child() {
		if f != nil {
			*[]*bool{&args.Stdin, &args.Stdout, &args.Stderr}[fd] = true
			files = append(files, f)
		}
	}
	var result StartResult
	conn, received, err := c.open(ctx, Request{Verb: VerbExec, ID: e.req.ID}, args, &result, files...)
	e.ends.CloseChild()
	switch {
	case err != nil:
		return 0, err
	case e.req.Terminal && len(received) == 1:
		e.ends.SetConsole(received[0])
	case e.req.Terminal || len(received) > 0:
		closeAll(received)
		conn.Close()
		return 0, fmt.Errorf("%s: the monitor sent %d terminals: %w", name(e.req.ID), len(received), errdefs.ErrInternal)
	}
	e.mu.Lock()
	e.conn = &conn
	e.mu.Unlock()
	c.watch.Go(func() { e.await(conn) })
	return result.PID, nil
}

// writeProcess writes the process where the runtime will read it.
func (e *execution) writeProcess(dir bundle.Dir) error {
	process := e.req.Process
	if width, height := e.ends.Size(); width > 0 {
		// The program may ask for its size at once, before there is a terminal here that could be resized.
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(process, &fields); err != nil {
			return fmt.Errorf("%s: process: %w: %w", name(e.req.ID), err, errdefs.ErrInvalidArgument)
		}
		var err error
		fields["consoleSize"] = fmt.Appendf(nil, `{"width":%d,"height":%d}`, width, height)
		if process, err = json.Marshal(fields); err != nil {
			return err
		}
	}
	err := os.WriteFile(ProcessFile(dir, e.req.ID), process, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: the container does not run: %w", name(e.req.ID), errdefs.ErrFailedPrecondition)
	}
	return err
}

// await takes the second answer to the start: the exit.
func (e *execution) await(conn Conn) {
	var reply Reply
	var exit task.Exit
	files, err := conn.Receive(&reply)
	closeAll(files)
	switch {
	case err != nil:
		err = fmt.Errorf("%s: the monitor has gone: %w: %w", name(e.req.ID), err, errdefs.ErrUnavailable)
	case reply.Error != nil:
		err = reply.Error
	default:
		err = json.Unmarshal(reply.Result, &exit)
	}
	conn.Close()
	e.finish(exit, err)
}

// finish makes the end known, once.
func (e *execution) finish(exit task.Exit, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.ended:
	default:
		e.exit, e.err = exit, err
		close(e.ended)
	}
}

// wait blocks until the process has ended and its output was taken, by Attach where there is one.
func (e *execution) wait(ctx context.Context) (task.Exit, error) {
	select {
	case <-e.ended:
	case <-ctx.Done():
		return task.Exit{}, context.Cause(ctx)
	}
	if e.err != nil {
		return task.Exit{}, e.err
	}
	return e.exit, e.drain(ctx)
}

// claim sets a flag of what can be done once.
func (e *execution) claim(done *bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if *done {
		return fmt.Errorf("%s: it was done before: %w", name(e.req.ID), errdefs.ErrFailedPrecondition)
	}
	*done = true
	return nil
}

// running tells whether the process was started and has not ended.
func (e *execution) running() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.ended:
		return false
	default:
		return e.started
	}
}

// attach copies between the client's ends and the process's until the output has ended. Whatever ends it, the process's
// ends are closed then: what comes after is for nobody.
func (e *execution) attach(ctx context.Context, streams task.Stdio) error {
	switch {
	case streams.Stdin != nil && !e.req.Stdin, streams.Stdout != nil && !e.req.Stdout, streams.Stderr != nil && (!e.req.Stderr || e.req.Terminal):
		return fmt.Errorf("attach: %s was made without that stream: %w", name(e.req.ID), errdefs.ErrFailedPrecondition)
	}
	if err := e.claim(&e.attached); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer close(e.drained)
	defer e.ends.Close()
	stop := context.AfterFunc(ctx, e.ends.Close)
	defer stop()
	<-e.ends.Ready()
	if f := e.ends.Ours(stdio.Stdin); f != nil && streams.Stdin != nil {
		go func() { // ends with its reader or, at the next read, with the process's end
			_, _ = copyBytes(f, streams.Stdin)
			e.ends.CloseInput()
		}()
	}
	var outputs sync.WaitGroup
	var failures [3]error
	for fd, w := range []io.Writer{stdio.Stdout: streams.Stdout, stdio.Stderr: streams.Stderr} {
		f := e.ends.Ours(fd)
		if fd == stdio.Stdin || f == nil {
			continue
		}
		if w == nil {
			w = io.Discard
		}
		outputs.Go(func() {
			if failures[fd] = e.copyOutput(w, f); failures[fd] != nil {
				e.ends.Close() // the client has gone, and so has the reason for the other output
			}
		})
	}
	outputs.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := errors.Join(failures[:]...); err != nil {
		return fmt.Errorf("attach to %s: write output: %w", name(e.req.ID), err)
	}
	return nil
}

// copyOutput returns what the client's end said; the end of the process's is none.
func (e *execution) copyOutput(w io.Writer, f *os.File) error {
	_, err := copyBytes(w, untilSilent{f, &e.exited})
	if pathError := (*os.PathError)(nil); errors.As(err, &pathError) &&
		(errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)) {
		return nil // a terminal's end, one that was closed here, or somebody who holds it open
	}
	return err
}

// untilSilent reads output; once the process has ended, silence is the end of it.
type untilSilent struct {
	f      *os.File
	exited *atomic.Bool
}

func (u untilSilent) Read(p []byte) (int, error) {
	if u.exited.Load() {
		_ = u.f.SetReadDeadline(time.Now().Add(drainIdle)) // Read tells where it is closed
	}
	return u.f.Read(p)
}

// copyBytes hides what else the two can do: io.Copy would splice, or take a buffer of another size.
func copyBytes(w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, copyBuffer))
}

// drain waits until the output of the process, which has ended, was taken.
func (e *execution) drain(ctx context.Context) error {
	e.mu.Lock()
	attached := e.attached
	e.mu.Unlock()
	if !attached {
		return nil
	}
	e.exited.Store(true)
	for _, fd := range []int{stdio.Stdout, stdio.Stderr} {
		if f := e.ends.Ours(fd); f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drainIdle)) // fails where it is closed, which ends the read too
		}
	}
	select {
	case <-e.drained:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
