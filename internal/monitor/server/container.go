package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/steps"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	// startTimeout bounds one call of the runtime that makes a process.
	startTimeout = 2 * time.Minute
	// callTimeout bounds every other call of the runtime.
	callTimeout = time.Minute
	// killTimeout is how long killed processes may take to end.
	killTimeout = 10 * time.Second
	// maxExecs bounds the execs of one container that have not ended.
	maxExecs = 1024
	// maxSpec bounds a bundle's spec, in bytes.
	maxSpec = 16 << 20

	specFile = "config.json"
)

// container is one container of the pod.
type container struct {
	*process
	request monitor.CreateRequest
	// dir is for temporary files; it exists while the runtime may know the container.
	dir string
	// streams are there from the creation on, so that clients attach before the start.
	streams *streams

	group *cgroup.Group // nil before the start, and where the spec names none; guarded by the process's mu

	execMu sync.Mutex
	execs  map[string]*process
}

func readSpec(bundle string, spec any) error {
	f, err := os.Open(filepath.Join(bundle, specFile))
	if err != nil {
		return fmt.Errorf("spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	decoder := json.NewDecoder(io.LimitReader(f, maxSpec))
	decoder.UseNumber()
	if err := decoder.Decode(spec); err != nil {
		return fmt.Errorf("spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// create registers a container.
func (s *Server) create(req monitor.CreateRequest) error {
	if !monitor.ValidID(req.ID) {
		return fmt.Errorf("create container: id %q: letters, digits and _.+- are possible: %w", req.ID, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(req.Bundle) {
		return fmt.Errorf("create container %s: bundle %q is not absolute: %w", req.ID, req.Bundle, errdefs.ErrInvalidArgument)
	}
	streams, err := s.openStreams(req)
	if err != nil {
		return fmt.Errorf("create container %s: %w", req.ID, err)
	}
	c := &container{
		process: newProcess(task.ID{Container: req.ID}, created), request: req, streams: streams,
		dir: filepath.Join(monitor.ContainerDirs(s.dir), req.ID), execs: map[string]*process{},
	}
	if err := s.add(c); err != nil {
		streams.close()
		return errors.Join(err, streams.closeLog())
	}
	return nil
}

// openStreams makes the stdio of a container that is to be made. The FIFOs of an external one are there as long as it is.
func (s *Server) openStreams(req monitor.CreateRequest) (*streams, error) {
	dir := ""
	if req.External {
		dir = monitor.StdioDir(s.dir, task.ID{Container: req.ID})
		if _, err := s.container(req.ID); err == nil {
			return nil, fmt.Errorf("it is there: %w", errdefs.ErrAlreadyExists)
		}
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return nil, err
		}
	}
	return openStreams(req.Terminal, req.Stdin, req.LogPath, dir, &s.buffers)
}

func (s *Server) add(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.containers[c.id.Container] != nil:
		return fmt.Errorf("%s: %w", c.name(), errdefs.ErrAlreadyExists)
	case s.ending:
		return fmt.Errorf("%s: the monitor is shutting down: %w", c.name(), errdefs.ErrUnavailable)
	}
	s.containers[c.id.Container] = c
	return nil
}

// start runs a container. It goes on when the caller has given up, as a daemon that dies is no reason to end a container:
// SIGKILL ends it.
func (s *Server) start(ctx context.Context, c *container) (pid int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if err := c.claim(cancel); err != nil {
		return 0, err
	}
	proc, err := s.run(ctx, c)
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			err = fmt.Errorf("killed while it was started: %w: %w", err, errdefs.ErrAborted)
		}
		c.streams.close()
		c.fail(task.Exit{Code: exitUnknown, At: time.Now(), Reason: err.Error()})
		return 0, err
	}
	c.streams.start(proc.Console)
	c.adopt(proc)
	s.work.Go(func() { s.follow(c, proc) })
	return proc.PID(), nil
}

// run calls the runtime; on error it has nothing left.
func (s *Server) run(ctx context.Context, c *container) (_ *runc.Process, err error) {
	_, end := steps.Start(ctx, "cgroup")
	if path := c.request.CgroupsPath; path != "" {
		group, err := cgroup.OfSpec(path)
		if err != nil {
			return nil, err
		}
		c.setGroup(group)
	}
	end()
	if width, height := c.streams.ends.Size(); width > 0 {
		// The program may ask at once, before there is a terminal here whose size could be set.
		size := map[string]any{"width": width, "height": height}
		if err := mergeSpec(c.request.Bundle, map[string]any{"process": map[string]any{"consoleSize": size}}); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, err
	}
	stdio := runc.Stdio{Files: c.streams.ends.Child(), Terminal: c.request.Terminal}
	running, end := steps.Start(ctx, "runtime run")
	proc, err := s.runtime.Run(running, c.id.Container, c.request.Bundle, c.dir, stdio)
	end()
	if err == nil {
		return proc, nil
	}
	if text := c.streams.leftover(); text != "" && errors.Is(err, runc.ErrNoReason) {
		err = fmt.Errorf("%w: it said: %s", err, text)
	}
	// A runtime that was killed may have left more than it knows of itself.
	return nil, errors.Join(err, c.sweep(), os.RemoveAll(c.dir))
}

func (c *container) setGroup(group *cgroup.Group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.group = group
}

func (c *container) cgroup() *cgroup.Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.group
}

// sweep ends what is left in a container's cgroup, and removes that.
func (c *container) sweep() error {
	group := c.cgroup()
	if group == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := group.Kill(ctx); err != nil {
		return err
	}
	return group.Remove(ctx)
}

// follow waits for the end of a container and makes it known.
func (s *Server) follow(c *container, proc *runc.Process) {
	select {
	case <-proc.Done():
	case <-s.ctx.Done():
		return
	}
	exit := proc.Exit()
	out := task.Exit{Code: exit.Code, At: exit.At}
	if group := c.cgroup(); group != nil {
		out.OOMKilled = group.OOMKills() > 0
		// Where the process was not the first of a PID namespace, others have outlived it.
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		if err := group.Kill(ctx); err != nil {
			s.log.Warn("processes of a container outlive it", logfields.Container, c.id.Container, logfields.Error, err)
		}
		cancel()
	}
	c.streams.drain()
	c.finish(out)
}

// signal sends to the container's first process, or to all, who are found by the cgroup: without one they are the first.
func (c *container) signal(ctx context.Context, sig unix.Signal, all bool) error {
	if sig == unix.SIGKILL {
		if c.cancel(task.Exit{Code: exitKilled, At: time.Now(), Reason: "killed before it was started"}) {
			c.streams.close()
			return nil
		}
	}
	if c.is(starting) {
		select {
		case <-c.settled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	group := c.cgroup()
	if !all || group == nil {
		return c.process.signal(sig)
	}
	if c.is(stopped) || c.is(deleting) {
		return fmt.Errorf("signal: %s has ended: %w", c.name(), errdefs.ErrNotFound)
	}
	if sig == unix.SIGKILL {
		// The first process first: where it has a PID namespace the others end with it.
		if err := c.process.signal(sig); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return group.Signal(sig)
}

// delete forgets a container that has ended or was never started, and what the runtime has of it.
func (s *Server) delete(c *container) error {
	if err := c.step(opDelete); err != nil {
		return err
	}
	if _, err := os.Stat(c.dir); err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		var err error
		if !c.request.External {
			// It has ended, with all its processes. To be forced would cost a runtime a tenth of a second of waiting for that.
			err = s.runtime.Delete(ctx, c.id.Container)
		}
		if err == nil {
			err = os.RemoveAll(c.dir)
		}
		if err != nil {
			_ = c.step(opRestore)
			return fmt.Errorf("delete container %s: %w", c.id.Container, err)
		}
	}
	c.streams.close()
	if err := c.streams.closeLog(); err != nil {
		s.log.Warn("container log is not complete", logfields.Container, c.id.Container, logfields.Error, err)
	}
	c.discard()
	s.mu.Lock()
	delete(s.containers, c.id.Container)
	s.mu.Unlock()
	return nil
}

// update changes limits of a container that runs, or in the spec of one that is created.
func (s *Server) update(c *container, resources json.RawMessage) error {
	if err := json.Unmarshal(resources, new(specs.LinuxResources)); err != nil {
		return fmt.Errorf("update container %s: %w: %w", c.id.Container, err, errdefs.ErrInvalidArgument)
	}
	if err := c.check(opUpdate); err != nil {
		return err
	}
	if c.is(created) {
		return mergeResources(c.request.Bundle, resources)
	}
	if c.request.External {
		return c.foreign("update")
	}
	file, err := writeTemp(c.dir, "resources-", resources)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return s.runtime.Update(ctx, c.id.Container, file)
}

// checkpoint writes an image of a container that runs. A client that has gone ends it.
func (s *Server) checkpoint(ctx context.Context, c *container, arguments json.RawMessage) error {
	var args monitor.CheckpointArgs
	if err := decode(arguments, &args); err != nil {
		return err
	}
	if c.request.External {
		return c.foreign("checkpoint")
	}
	if err := c.check(opCheckpoint); err != nil {
		return err
	}
	if _, err := exec.LookPath("criu"); err != nil { // where the runtime looks too
		return fmt.Errorf("%w: install criu, which checkpoints are made with: Debian's package has that name: %w", err, errdefs.ErrFailedPrecondition)
	}
	return s.runtime.Checkpoint(ctx, c.id.Container, args.Images, args.Work)
}

// writeTemp writes a temporary file and returns its path.
func writeTemp(dir, prefix string, data []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, prefix)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func (c *container) attachable(args monitor.AttachArgs) error {
	if args.Stdin && !c.request.Stdin {
		return fmt.Errorf("attach: %s was created without stdin: %w", c.name(), errdefs.ErrFailedPrecondition)
	}
	return c.check(opAttach)
}

// attach shows a container's output and gives it the client's input, until either ends.
func (c *container) attach(client monitor.Conn, viewer *stdio.Viewer, stdin bool) {
	var input sync.WaitGroup
	defer input.Wait()
	input.Go(func() {
		stdio.ReadInput(client, c.streams, stdin, c.request.StdinOnce)
		if stdin && c.request.StdinOnce {
			c.streams.CloseStdin()
		}
		viewer.Leave() // the client has gone
	})
	defer client.Close() // which ends the input
	_ = viewer.Run(client)
}
