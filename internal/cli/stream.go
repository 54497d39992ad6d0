package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stdio is what a person wants of a process's streams.
type stdio struct{ interactive, tty bool }

func (s *stdio) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&s.interactive, "interactive", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&s.tty, "tty", "t", false, "give the process a terminal")
}

func (a *app) execCommand() *cobra.Command {
	var s stdio
	cmd := &cobra.Command{
		Use:   "exec [-it] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a container; its exit code becomes ours",
		Args:  cobra.MinimumNArgs(2),
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			if err := a.streams("exec"); err != nil {
				return err
			}
			ctr, err := c.container(ctx, args[0])
			if err != nil {
				return err
			}
			resp, err := c.Exec(ctx, &runtime.ExecRequest{
				ContainerId: ctr.Id, Cmd: args[1:], Tty: s.tty, Stdin: s.interactive, Stdout: true, Stderr: !s.tty,
			})
			if err != nil {
				return err
			}
			return a.stream(ctx, resp.Url, s, nil)
		}),
	}
	// What follows the container belongs to the command.
	cmd.Flags().SetInterspersed(false)
	s.flags(cmd)
	return cmd
}

func (a *app) attachCommand() *cobra.Command {
	var s stdio
	cmd := &cobra.Command{
		Use:   "attach [-it] CONTAINER",
		Short: "Join the streams of a container's own process",
		Args:  cobra.ExactArgs(1),
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			if err := a.streams("attach"); err != nil {
				return err
			}
			ctr, err := c.container(ctx, args[0])
			if err != nil {
				return err
			}
			return a.attach(ctx, c, ctr.Id, s, nil)
		}),
	}
	s.flags(cmd)
	return cmd
}

// attach joins a container's streams; joined, where set, is called once the streams are open.
func (a *app) attach(ctx context.Context, c *client, id string, s stdio, joined func()) error {
	resp, err := c.Attach(ctx, &runtime.AttachRequest{ContainerId: id, Tty: s.tty, Stdin: s.interactive, Stdout: true, Stderr: !s.tty})
	if err != nil {
		return err
	}
	return a.stream(ctx, resp.Url, s, joined)
}

// stream connects our standard streams with a URL of the streaming server and returns when the process ended or
// ctx did. A code other than 0 becomes an exitError.
func (a *app) stream(ctx context.Context, address string, s stdio, joined func()) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("streaming address: %w", err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, "POST", u)
	if err != nil {
		return err
	}
	opts := remotecommand.StreamOptions{Stdout: a.out, Stderr: a.err, Tty: s.tty}
	if s.interactive {
		opts.Stdin = a.in
	}
	if s.tty {
		opts.Stderr = nil
		restore, err := a.rawTerminal(s.interactive)
		if err != nil {
			return err
		}
		defer restore()
		sizes := newSizes(a.in)
		defer sizes.stop()
		opts.TerminalSizeQueue = sizes
	}
	if joined != nil {
		// The executor reads from stdin or asks for a size only after all streams are open.
		once := sync.OnceFunc(joined)
		if opts.Stdin != nil {
			opts.Stdin = &notifyReader{Reader: opts.Stdin, notify: once}
		}
		if opts.TerminalSizeQueue != nil {
			opts.TerminalSizeQueue = &notifySizes{TerminalSizeQueue: opts.TerminalSizeQueue, notify: once}
		}
	}
	err = executor.StreamWithContext(ctx, opts)
	var code utilexec.CodeExitError
	if errors.As(err, &code) {
		return exitError(code.Code)
	}
	return err
}

// rawTerminal puts our terminal into raw mode for as long as the remote one is in charge.
func (a *app) rawTerminal(interactive bool) (restore func(), err error) {
	fd := int(a.in.Fd())
	if !term.IsTerminal(fd) || !interactive {
		return func() {}, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

type notifyReader struct {
	io.Reader
	notify func()
}

func (r *notifyReader) Read(p []byte) (int, error) {
	r.notify()
	return r.Reader.Read(p)
}

type notifySizes struct {
	remotecommand.TerminalSizeQueue
	notify func()
}

func (n *notifySizes) Next() *remotecommand.TerminalSize {
	n.notify()
	return n.TerminalSizeQueue.Next()
}

// sizes follows the size of our terminal.
type sizes struct {
	file    *os.File
	changed chan os.Signal
	done    chan struct{}
}

func newSizes(file *os.File) *sizes {
	s := &sizes{file: file, changed: make(chan os.Signal, 1), done: make(chan struct{})}
	signal.Notify(s.changed, syscall.SIGWINCH)
	s.changed <- syscall.SIGWINCH // the size at the start is news too
	return s
}

// Next blocks until the size changed; nil ends the queue.
func (s *sizes) Next() *remotecommand.TerminalSize {
	for {
		select {
		case <-s.done:
			return nil
		case <-s.changed:
			if w, h, err := term.GetSize(int(s.file.Fd())); err == nil {
				return &remotecommand.TerminalSize{Width: uint16(w), Height: uint16(h)}
			}
		}
	}
}

func (s *sizes) stop() {
	signal.Stop(s.changed)
	close(s.done)
}
