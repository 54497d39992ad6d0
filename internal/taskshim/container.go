package taskshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	// startTimeout bounds the start of a container, with that of its shim.
	startTimeout = 2 * time.Minute
	// callTimeout bounds a call of the binary.
	callTimeout = time.Minute
	// endTimeout is how long a shim may take to end.
	endTimeout = 5 * time.Second
	// shutdownTimeout is how long the containers of a pod that is shut down may take to end.
	shutdownTimeout = 30 * time.Second
	// exitUnknown is the code of what ended with its shim.
	exitUnknown = 255
)

// container is one container of the pod.
type container struct {
	pod *Pod
	id  string
	// turn is held by whoever starts or deletes it, and by him alone.
	turn chan struct{}

	mu        sync.Mutex
	rec       record
	shim      *connection // nil: it has none, or none any more
	following bool
	execs     map[string]*execution
	// size is what a terminal gets when it comes; inputEnded: there is no more input when there is somebody to be told.
	size       *[2]uint32
	inputEnded bool
}

func (c *container) task() task.ID { return task.ID{Container: c.id} }

func (c *container) claim(ctx context.Context) (release func(), err error) {
	select {
	case c.turn <- struct{}{}:
		return func() { <-c.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// connected returns the shim that has the container.
func (c *container) connected() *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Stage != stageMade {
		return nil
	}
	return c.shim
}

// runs returns the shim of a container that was started. FailedPrecondition when it was not.
func (c *container) runs() (*connection, error) {
	if shim := c.connected(); shim != nil {
		return shim, nil
	}
	return nil, fmt.Errorf("container %s does not run: %w", c.id, errdefs.ErrFailedPrecondition)
}

// note changes the record; the caller has the claim.
func (c *container) note(change func(*record)) error {
	rec := c.record()
	change(&rec)
	if err := bundle.WriteRecord(recordFile(c.pod.dir, c.id), rec); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec = rec
	return nil
}

func (c *container) record() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// Start runs a container, or an exec with the stdio that Attach has joined, and returns its pid on the host. A start of a
// container that was cut short is brought to its end. It goes on when the caller has given up.
func (p *Pod) Start(ctx context.Context, id task.ID) (pid uint32, err error) {
	c, err := p.container(id.Container)
	if err != nil {
		return 0, err
	}
	if id.Exec != "" {
		return c.startExec(ctx, id)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	release, err := c.claim(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	if pid, err = c.start(ctx); err == nil {
		c.follow()
		return pid, nil
	}
	err = classified(err)
	if !errors.Is(err, errStarted) {
		ctx, cancel := cleanup.Detach(ctx) // the start may have taken all of its time
		defer cancel()
		exit := task.Exit{Code: exitUnknown, At: time.Now(), Reason: err.Error()}
		_, told := p.Exited(ctx, c.id, exit)
		err = errors.Join(err, c.purge(ctx), told)
	}
	return 0, err
}

var errStarted = fmt.Errorf("it was started before: %w", errdefs.ErrFailedPrecondition)

func (c *container) start(ctx context.Context) (uint32, error) {
	state := "created"
	switch rec := c.record(); rec.Stage {
	case stageMade: // by a start that was cut short, or brought to its end
		shim := c.connected()
		if shim == nil {
			return 0, errStarted // its end is being told
		}
		var err error
		if state, err = shim.State(ctx, c.task()); err != nil {
			return 0, err
		}
	case stageCalled: // nobody knows how far that came
		if err := c.purge(ctx); err != nil {
			return 0, err
		}
		fallthrough
	default:
		if err := c.make(ctx); err != nil {
			return 0, err
		}
	}
	if state != "created" {
		return 0, errStarted
	}
	// The shim has opened its ends of the FIFOs.
	if _, err := c.pod.Client.Start(ctx, c.task()); err != nil && (!errdefs.IsFailedPrecondition(err) || !c.isFollowed()) {
		return 0, err
	}
	shim, err := c.runs() // which may have died meanwhile
	if err != nil {
		return 0, err
	}
	pid, err := shim.Start(ctx, c.task())
	if err != nil {
		return 0, err
	}
	return pid, c.catchUp(ctx, shim)
}

func (c *container) isFollowed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.following
}

// make has a shim make the container.
func (c *container) make(ctx context.Context) error {
	if err := c.note(func(r *record) { r.Stage = stageCalled }); err != nil {
		return err
	}
	answer, err := c.call(ctx)
	if err != nil {
		return err
	}
	if err := c.note(func(r *record) { r.Answer = answer }); err != nil {
		return err
	}
	if err := c.connect(ctx); err != nil {
		return c.explain(err)
	}
	rec := c.record()
	c.mu.Lock()
	shim := c.shim
	c.mu.Unlock()
	if _, err := shim.Create(ctx, c.id, rec.Bundle, rec.Terminal, c.fifos(), c.pod.opts.Options); err != nil {
		return c.explain(err)
	}
	return c.note(func(r *record) { r.Stage = stageMade })
}

// call calls the shim's binary in the monitor's place, and returns where the shim is.
func (c *container) call(ctx context.Context) (answer shimclient.Answer, err error) {
	call, err := c.bootstrap().Start()
	if err != nil {
		return answer, err
	}
	result, err := c.program(ctx, call)
	if err != nil {
		return answer, err
	}
	return shimclient.ParseAnswer(result)
}

func (c *container) bootstrap() shimclient.Bootstrap {
	return c.record().bootstrap(c.id, c.pod.opts)
}

func (r record) bootstrap(id string, opts Options) shimclient.Bootstrap {
	return shimclient.Bootstrap{ID: id, Bundle: r.Bundle, Events: opts.Events, SocketDir: opts.SocketDir, Options: opts.Options}
}

// program calls the shim's binary and returns what it says.
func (c *container) program(ctx context.Context, call shimclient.Call) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	rec := c.record()
	result, err := c.pod.Program(ctx, monitor.ProgramArgs{
		Args: append([]string{rec.Binary}, call.Args...), Dir: rec.Bundle, Env: append(call.Env, path), Input: call.Input,
	})
	if err != nil {
		return nil, err
	}
	if result.Code != 0 {
		return nil, fmt.Errorf("%s: exit code %d: %s: %w", rec.Binary, result.Code, words(result.Errors, result.Output), errdefs.ErrFailedPrecondition)
	}
	return result.Output, nil
}

// path is what shims look for their runtimes in.
const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (c *container) connect(ctx context.Context) error {
	shim, err := c.pod.dial(ctx, c.record().Answer, "container "+c.id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shim = shim
	return nil
}

func (c *container) fifos() shimclient.FIFOs {
	rec, dir := c.record(), monitor.StdioDir(c.pod.Dir(), c.task())
	return fifosOf(dir, rec.Stdin, true, rec.Terminal)
}

// fifosOf names what is in a directory. Shims open both outputs or none.
func fifosOf(dir string, stdin, output, terminal bool) shimclient.FIFOs {
	var f shimclient.FIFOs
	if stdin {
		f.Stdin = stdio.FIFO(dir, stdio.Stdin)
	}
	if output {
		f.Stdout = stdio.FIFO(dir, stdio.Stdout)
	}
	if output && !terminal {
		f.Stderr = stdio.FIFO(dir, stdio.Stderr)
	}
	return f
}

// catchUp tells the shim what was to be told before it was there.
func (c *container) catchUp(ctx context.Context, shim *connection) error {
	c.mu.Lock()
	size, ended := c.size, c.inputEnded
	c.mu.Unlock()
	if size != nil {
		if err := shim.Resize(ctx, c.task(), size[0], size[1]); err != nil {
			c.pod.opts.Log.DebugContext(ctx, "terminal not resized", logfields.Container, c.id, logfields.Error, err)
		}
	}
	if ended {
		return ignoreEnded(shim.CloseInput(ctx, c.task()))
	}
	return nil
}

// follow waits for the end of a container that was started and tells the monitor.
func (c *container) follow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.following {
		return
	}
	c.following = true
	shim := c.shim
	c.pod.work.Go(func() {
		ctx := c.pod.ctx
		exit, err := c.wait(ctx, shim)
		if err != nil {
			return // this client's end, not the container's
		}
		if group, err := cgroup.OfSpec(c.record().CgroupsPath); err == nil {
			exit.OOMKilled = group.OOMKills() > 0
		}
		if _, err := c.pod.Exited(ctx, c.id, exit); err != nil && ctx.Err() == nil && !errdefs.IsNotFound(err) {
			c.pod.opts.Log.ErrorContext(ctx, "exit of a container could not be told to its monitor", logfields.Container, c.id, logfields.Error, err)
		}
	})
}

// wait returns how the container has ended. The error is ctx's alone.
func (c *container) wait(ctx context.Context, shim *connection) (task.Exit, error) {
	if shim == nil {
		return c.lost(ctx), nil
	}
	exit, err := shim.Wait(ctx, c.task())
	switch {
	case err == nil:
		return exit, nil
	case ctx.Err() != nil:
		return exit, ctx.Err()
	case shimclient.Gone(err):
		return c.lost(ctx), nil
	}
	return task.Exit{Code: exitUnknown, At: time.Now(), Reason: "its shim does not say how it ended: " + err.Error()}, nil
}

// lost ends a container whose shim has gone, and returns its exit: the one that the shim has left a note of, or none.
func (c *container) lost(ctx context.Context) task.Exit {
	began := time.Now()
	exit := task.Exit{Code: exitUnknown, At: began, Reason: "the containerd shim ended unexpectedly, and the container with it"}
	if text := bundle.LastWords(logFile(c.record().Bundle)); text != "" {
		exit.Reason += "; the shim's last log lines: " + text
	}
	found, err := c.deleteBinary(ctx)
	switch {
	case err != nil:
		c.pod.opts.Log.WarnContext(ctx, "what a dead shim has left could not be removed by its binary; its processes end with the pod", logfields.Container, c.id, logfields.Error, err)
	case !found.At.IsZero() && found.At.Unix() > 0 && found.At.Before(began):
		exit = found // it had ended before, by itself
	}
	c.mu.Lock()
	shim := c.shim
	c.shim = nil
	c.mu.Unlock()
	if shim != nil {
		shim.Close()
	}
	return exit
}

// explain adds the last lines that a dead shim logged.
func (c *container) explain(err error) error {
	if !shimclient.Gone(err) && !errdefs.IsUnavailable(err) {
		return err
	}
	if text := bundle.LastWords(logFile(c.record().Bundle)); text != "" {
		return fmt.Errorf("%w; the shim's last log lines:\n%s", err, text)
	}
	return err
}

// Delete forgets a process that has ended or was never started, and what the shim has of it.
func (p *Pod) Delete(ctx context.Context, id task.ID) error {
	c, err := p.container(id.Container)
	if err != nil {
		return err
	}
	if id.Exec != "" {
		return c.deleteExec(ctx, id)
	}
	release, err := c.claim(ctx)
	if err != nil {
		return err
	}
	defer release()
	// The monitor knows whether it may go. One that does not know it is where an earlier try has come to.
	if err := p.Client.Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := c.purge(ctx); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	if err := os.Remove(recordFile(p.dir, c.id)); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.containers, c.id)
	return nil
}

// Update changes the limits of a container, which may run or be created.
func (p *Pod) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	c, err := p.container(id)
	if err != nil {
		return err
	}
	release, err := c.claim(ctx)
	if err != nil {
		return err
	}
	defer release()
	shim, err := c.runs()
	switch {
	case err == nil:
		return classified(shim.Update(ctx, id, resources))
	case c.record().Stage == stageMade:
		return err // its shim has ended
	}
	return p.Client.Update(ctx, id, resources)
}

// Signal sends to a process, or to all of its container. NotFound for one that has ended.
func (p *Pod) Signal(ctx context.Context, id task.ID, signal uint32, all bool) error {
	c, err := p.container(id.Container)
	if err != nil {
		return err
	}
	if id.Exec != "" {
		shim, err := c.runs()
		if err != nil {
			return err
		}
		return classified(shim.Signal(ctx, id, signal, false))
	}
	// One that is being started gets it when that has come to its end.
	release, err := c.claim(ctx)
	if err != nil {
		return err
	}
	release()
	if shim := c.connected(); shim != nil {
		return classified(shim.Signal(ctx, id, signal, all))
	}
	if c.record().Stage == stageMade {
		return fmt.Errorf("signal: the shim of container %s has ended, and the container with it: %w", c.id, errdefs.ErrNotFound)
	}
	return p.Client.Signal(ctx, id, signal, all)
}

// InitPID is the pid of a running container's first process. NotImplemented where containers have none of their own.
func (p *Pod) InitPID(ctx context.Context, id string) (uint32, error) {
	c, err := p.container(id)
	if err != nil {
		return 0, err
	}
	shim, err := c.runs()
	if err != nil {
		return 0, err
	}
	pid, err := shim.PID(ctx, id)
	if err != nil {
		return 0, classified(err)
	}
	first := p.first()
	if first == nil || first == c {
		return pid, nil
	}
	if shared := first.connected(); shared != nil {
		if other, err := shared.PID(ctx, first.id); err == nil && other == pid {
			return 0, fmt.Errorf("container %s has no process of its own on the host, which others could share a namespace with: %w", id, errdefs.ErrNotImplemented)
		}
	}
	return pid, nil
}

// classified gives errors that shims have no class for one: what cannot be executed is the request's fault.
func classified(err error) error {
	switch {
	case err == nil, !errdefs.IsUnknown(err) && !errdefs.IsInternal(err):
		return err
	case strings.Contains(err.Error(), `exec: "`):
		return fmt.Errorf("%w: %w", errors.New(err.Error()), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%w: %w", errors.New(err.Error()), errdefs.ErrInternal)
}

// ignoreEnded is for calls about a process that may have ended.
func ignoreEnded(err error) error {
	if errdefs.IsNotFound(err) || shimclient.Gone(err) {
		return nil
	}
	return err
}
