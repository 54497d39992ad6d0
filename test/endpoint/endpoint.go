package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/leak"
)

const (
	// patience bounds the start and the end of a daemon.
	patience = 2 * time.Minute
	// reconnect is how long a client waits before it dials again: measured restarts must not be those of gRPC's back-off.
	reconnect = 5 * time.Millisecond
)

// Options are what all daemons are given alike.
type Options struct {
	// Work is the directory below which each daemon gets one of its own.
	Work string
	// Peers is where hack/peers.sh put the peers' programs, Bin where Pistis' are.
	Peers, Bin string
	// Runtimes maps a handler's name to the path of its OCI runtime.
	Runtimes map[string]string
	// Pause is the image of the pause container, for daemons that want one.
	Pause string
	// Default is pistisd's handler for pods that name none, where it is not its own choice.
	Default string
	// Extra is appended to pistisd's configuration.
	Extra string
}

// setup writes a daemon's configuration and returns the command that starts it.
type setup func(e *Endpoint, o Options) (argv []string, err error)

// Endpoint is a CRI daemon.
type Endpoint struct {
	runtime.RuntimeServiceClient
	Images runtime.ImageServiceClient

	// Name tells it from the others, in at most 12 characters: its bridge and cgroup are called after it.
	Name string
	// Scope is what belongs to it on the host.
	Scope leak.Scope
	// Socket is its CRI socket.
	Socket string

	dir    string // all of its files
	number byte   // tells its network from the others'
	argv   []string
	conn   *grpc.ClientConn
	log    *os.File
	life   *life           // the newest
	lost   context.Context // ends with the daemon when nobody ended that
	lose   context.CancelCauseFunc
}

// life is one of the daemon's, from its start to its end.
type life struct {
	cmd   *exec.Cmd
	begin int64         // of what it says, in the log
	done  chan struct{} // closed when the process has ended
	told  atomic.Bool   // to end
}

// Kinds are the names that New takes.
func Kinds() []string { return []string{"containerd", "containerd-1.6", "pistis", "pistis-cni"} }

// New writes the configuration of a daemon of a kind and starts it. The caller ends it with Close.
func New(ctx context.Context, kind string, o Options) (*Endpoint, error) {
	setups := map[string]setup{
		"containerd": containerd2, "containerd-1.6": containerd1,
		"pistis": pistisBridge, "pistis-cni": pistisCNI,
	}
	write, ok := setups[kind]
	if !ok {
		return nil, fmt.Errorf("no daemon %q: there are %q", kind, Kinds())
	}
	number := slices.Index(Kinds(), kind)
	name := fmt.Sprintf("peer%d", number)
	e := &Endpoint{Name: kind, number: byte(number), dir: filepath.Join(o.Work, kind)}
	e.Scope = leak.Scope{Root: filepath.Join(e.dir, "root"), State: "/run/pistis-" + name, Bridge: name, Cgroup: "/pistis-" + name + "/pods"}
	e.Socket = filepath.Join(e.Scope.State, "cri.sock")
	for _, dir := range []string{e.Scope.Root, e.Scope.State} {
		// What a run that was killed left there would be measured too.
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o711)); err != nil {
			return nil, err
		}
	}
	e.lost, e.lose = context.WithCancelCause(context.Background())
	var err error
	if e.argv, err = write(e, o); err != nil {
		return nil, err
	}
	if e.log, err = os.Create(filepath.Join(e.dir, "log")); err != nil {
		return nil, err
	}
	if e.conn, err = e.dial(); err != nil {
		return nil, err
	}
	e.RuntimeServiceClient, e.Images = runtime.NewRuntimeServiceClient(e.conn), runtime.NewImageServiceClient(e.conn)
	if err := e.Start(ctx); err != nil {
		return nil, errors.Join(err, e.Close(context.WithoutCancel(ctx)))
	}
	return e, nil
}

func (e *Endpoint) dial() (*grpc.ClientConn, error) {
	const most = 32 << 20 // of an answer
	return grpc.NewClient("unix://"+e.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: reconnect, Multiplier: 1, MaxDelay: reconnect}, MinConnectTimeout: patience}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(most)))
}

// Start starts the process and waits until it says that it can run pods.
func (e *Endpoint) Start(ctx context.Context) error {
	if err := e.Launch(); err != nil {
		return err
	}
	return e.Poll(ctx, "the daemon to be ready", func(ctx context.Context) error {
		resp, err := e.Status(ctx, &runtime.StatusRequest{})
		for _, c := range resp.GetStatus().GetConditions() {
			if !c.Status && (c.Type == runtime.RuntimeReady || c.Type == runtime.NetworkReady) {
				err = errors.Join(err, fmt.Errorf("%s: %s: %s", c.Type, c.Reason, c.Message))
			}
		}
		return err
	})
}

// Launch starts the process and waits for nothing.
func (e *Endpoint) Launch() error {
	if err := e.makeCgroup(); err != nil {
		return err
	}
	said, err := e.log.Stat()
	if err != nil {
		return err
	}
	cmd := exec.Command(e.argv[0], e.argv[1:]...)
	cmd.Stdout, cmd.Stderr = e.log, e.log
	// Its own programs first: containerd looks for its shim there.
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(e.argv[0])+":"+os.Getenv("PATH"), marker+e.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for the client, which then ends the daemon
	if err := e.startInCgroup(cmd); err != nil {
		return err
	}
	l := &life{cmd: cmd, begin: said.Size(), done: make(chan struct{})}
	e.life = l
	go func() { // ends with the process, which end waits for
		defer close(l.done)
		_ = cmd.Wait() // how it ended is in the state
		if !l.told.Load() {
			e.lose(fmt.Errorf("%s has ended by itself (%v); its log is %s, which ends with\n%s", e.Name, cmd.ProcessState, e.log.Name(), e.lastWords(l)))
		}
	}()
	return nil
}

// lastWords is the end of what the daemon has said in a life.
func (e *Endpoint) lastWords(l *life) string {
	const most = 4 << 10
	info, err := e.log.Stat()
	if err != nil {
		return err.Error()
	}
	from := max(l.begin, info.Size()-most)
	text, err := io.ReadAll(io.NewSectionReader(e.log, from, info.Size()-from))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// Watch returns a context that ends when the daemon does though nobody has ended it; the cause has its last words. Calls
// wait for a daemon to connect to, and would wait for ever then.
func (e *Endpoint) Watch(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.lost, func() { cancel(context.Cause(e.lost)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// PID is the daemon's process.
func (e *Endpoint) PID() int { return e.life.cmd.Process.Pid }

// Stop ends the daemon as a service manager does; its pods go on.
func (e *Endpoint) Stop() error { return e.end(syscall.SIGTERM) }

// Kill ends the daemon as a crash does; its pods go on.
func (e *Endpoint) Kill() error { return e.end(syscall.SIGKILL) }

func (e *Endpoint) end(sig syscall.Signal) error {
	l := e.life
	if l == nil || l.told.Swap(true) {
		return nil
	}
	if err := l.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-l.done:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s has not ended %v after %v", e.Name, patience, sig)
	}
}

// Poll asks until the answer is no error, the daemon has ended or it has taken too long.
func (e *Endpoint) Poll(ctx context.Context, what string, ask func(context.Context) error) error {
	ctx, stop := e.Watch(ctx)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	const interval = 2 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting for %s: %w: %w; its log is %s", e.Name, what, context.Cause(ctx), err, e.log.Name())
		}
	}
}

// wipe has pistisd take away what it keeps for its next start; the others have no such command.
func (e *Endpoint) wipe() error {
	if filepath.Base(e.argv[0]) != "pistisd" {
		return nil
	}
	if out, err := exec.Command(e.argv[0], append(e.argv[1:len(e.argv):len(e.argv)], "wipe", "--yes")...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: wipe: %w: %s", e.Name, err, out)
	}
	return nil
}

// serves tells whether there is a daemon to remove pods.
func (e *Endpoint) serves() bool { return e.life != nil && !e.life.told.Load() && e.lost.Err() == nil }

// Close removes the pods, ends the daemon and removes what is its own. What of the pods is left then, is the error, unless
// there was no daemon any more to remove them.
func (e *Endpoint) Close(ctx context.Context) error {
	var err error
	if e.serves() {
		err = errors.Join(e.RemoveAll(ctx), e.Stop())
		found, findErr := leak.Find(e.Scope)
		err = errors.Join(err, findErr)
		for _, line := range found {
			err = errors.Join(err, fmt.Errorf("%s left behind: %s", e.Name, line))
		}
	}
	err = errors.Join(err, e.wipe(), RemoveCgroups(e.cgroup()))
	// The directory keeps nothing but the log, for whoever looks into an error.
	return errors.Join(err, e.conn.Close(), e.log.Close(), os.RemoveAll(e.Scope.Root), os.RemoveAll(e.Scope.State))
}
