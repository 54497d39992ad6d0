package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

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

// Execution is an exec as its client sees it: its stdio, which is the client's alone, and its exit. Who runs it is somebody
// else's business.
type Execution struct {
	// InputEnded, where set, is called when the process's input was closed here.
	InputEnded func()

	req  task.ExecRequest
	ends *stdio.Ends
	// ended is closed when exit is known, or err says why it will not be.
	ended chan struct{}
	// drained is closed when Attach has taken all output.
	drained chan struct{}
	exited  atomic.Bool

	mu                sync.Mutex
	started, attached bool
	exit              task.Exit
	err               error
}

// NewExecution takes over the ends of a process that is to be started.
func NewExecution(req task.ExecRequest, ends *stdio.Ends) *Execution {
	return &Execution{req: req, ends: ends, ended: make(chan struct{}), drained: make(chan struct{})}
}

// Begin claims the start, which there is one of.
func (e *Execution) Begin() error { return e.claim(&e.started) }

// Finish makes the end known, once.
func (e *Execution) Finish(exit task.Exit, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.ended:
	default:
		e.exit, e.err = exit, err
		close(e.ended)
	}
}

// Wait blocks until the process has ended and its output was taken, by Attach where there is one.
func (e *Execution) Wait(ctx context.Context) (task.Exit, error) {
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
func (e *Execution) claim(done *bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if *done {
		return fmt.Errorf("%s: it was done before: %w", name(e.req.ID), errdefs.ErrFailedPrecondition)
	}
	*done = true
	return nil
}

// Running tells whether the process was started and has not ended.
func (e *Execution) Running() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.ended:
		return false
	default:
		return e.started
	}
}

// Attach copies between the client's ends and the process's until the output has ended. Whatever ends it, the process's
// ends are closed then: what comes after is for nobody.
func (e *Execution) Attach(ctx context.Context, streams task.Stdio) error {
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
	if streams.Stdin != nil {
		go func() { // ends with its reader or, at the next read, with the process's end
			<-e.ends.InputReady()
			f := e.ends.Ours(stdio.Stdin)
			if f == nil {
				return
			}
			_, _ = copyBytes(f, streams.Stdin)
			e.ends.CloseInput()
			if e.InputEnded != nil {
				e.InputEnded()
			}
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
func (e *Execution) copyOutput(w io.Writer, f *os.File) error {
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
func (e *Execution) drain(ctx context.Context) error {
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
