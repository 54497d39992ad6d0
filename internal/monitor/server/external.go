package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/task"
)

// maxOutput bounds what is passed on of what a program has written, in bytes.
const maxOutput = 64 << 10

// carry begins to take the output of an external container, whose runner has opened the FIFOs.
func (c *container) carry() error {
	if err := c.claim(func() {}); err != nil {
		return err
	}
	c.streams.start(nil)
	c.adopt(nil)
	return nil
}

// ended makes the exit of an external container known, after its output was drained. The first exit that was told counts.
func (c *container) ended(args json.RawMessage) (task.Exit, error) {
	var exit task.Exit
	if err := decode(args, &exit); err != nil {
		return exit, err
	}
	if !c.request.External {
		return exit, fmt.Errorf("%s is this monitor's own: %w", c.name(), errdefs.ErrInvalidArgument)
	}
	if exit.At.IsZero() {
		return exit, fmt.Errorf("%s: an exit without its time: %w", c.name(), errdefs.ErrInvalidArgument)
	}
	c.streams.drain()
	c.finish(exit)
	<-c.exited
	return c.exit, nil
}

// foreign refuses what the runner of an external container has to be asked for.
func (c *container) foreign(what string) error {
	return fmt.Errorf("%s: %s is not run by this monitor: %w", what, c.name(), errdefs.ErrInvalidArgument)
}

// program runs a program to its end. Its streams are files and no pipes: what it leaves behind may hold them open.
func (s *Server) program(ctx context.Context, args monitor.ProgramArgs) (result monitor.ProgramResult, err error) {
	if len(args.Args) == 0 {
		return result, fmt.Errorf("program: it has no name: %w", errdefs.ErrInvalidArgument)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, content := range [][]byte{args.Input, nil, nil} {
		f, err := memory(content)
		if err != nil {
			return result, err
		}
		files = append(files, f)
	}
	p, err := s.reaper.Start(args.Args[0], args.Args, &os.ProcAttr{Dir: args.Dir, Env: args.Env, Files: files, Sys: &unix.SysProcAttr{Setsid: true}})
	if err != nil {
		return result, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(unix.SIGKILL) }) // one that has ended needs none
	<-p.Done()
	if !stop() {
		return result, fmt.Errorf("%s was killed: %w", args.Args[0], context.Cause(ctx))
	}
	result.Code = p.Exit().Code
	var errs error
	result.Output, err = written(files[1])
	result.Errors, errs = written(files[2])
	return result, errors.Join(err, errs)
}

// memory is a file without a name, to be read from its beginning.
func memory(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("stdio", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("program: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdio")
	if len(content) > 0 {
		if _, err := f.WriteAt(content, 0); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func written(f *os.File) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(f, 0, maxOutput))
}
