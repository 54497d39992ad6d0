package shim

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

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agentclient"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	// pumpBuffer is the size of one read from the guest.
	pumpBuffer = 32 << 10
	// drainIdle is how long an ended process's output may stay silent before it is cut: somebody who outlived the
	// process holds it open.
	drainIdle = 10 * time.Second
	// streamScheme means that an attach stream carries the stdio.
	streamScheme = "stream:"
)

// stdioPaths are those of a request: "" for /dev/null, "stream:", or a FIFO.
type stdioPaths struct{ in, out, err string }

func (p stdioPaths) streamed() bool {
	return p.in == streamScheme || p.out == streamScheme || p.err == streamScheme
}

// processIO carries the stdio of one process. Its pumps belong to it; drained is closed when they have ended.
type processIO struct {
	in      agentclient.Stream // nil: no stdin
	outputs []agentclient.Stream
	fanout  stdio.Fanout
	client  *execClient // of an exec with an attach stream; otherwise nil
	fifoIn  *stdio.FIFOReader
	fifos   []*os.File
	records []*stdio.LogStream

	pumps   sync.WaitGroup
	exiting atomic.Bool
	drained chan struct{}
	inOnce  sync.Once
	inMu    sync.Mutex
}

// openIO opens the streams of a process that was created and not started, and starts to pump. log may be nil. On
// error nothing is left open.
func openIO(ctx context.Context, agent *agentclient.Client, id task.ID, terminal, stdin bool, paths stdioPaths, log *stdio.Log, spawn func(func())) (_ *processIO, err error) {
	p := &processIO{drained: make(chan struct{})}
	if paths.streamed() {
		p.client = newExecClient()
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if stdin {
		if p.in, err = agent.OpenStdio(ctx, id, agentv1.StdioStream_STDIN); err != nil {
			return nil, err
		}
		if paths.in != "" && paths.in != streamScheme {
			if p.fifoIn, err = stdio.OpenFIFOReader(paths.in); err != nil {
				return nil, err
			}
		}
	}
	outputs := []output{{agentv1.StdioStream_STDOUT, stdio.KindStdout, "stdout", paths.out}}
	if !terminal {
		outputs = append(outputs, output{agentv1.StdioStream_STDERR, stdio.KindStderr, "stderr", paths.err})
	}
	var sinks []io.Writer
	for _, o := range outputs {
		stream, err := agent.OpenStdio(ctx, id, o.fd)
		if err != nil {
			return nil, err
		}
		p.outputs = append(p.outputs, stream)
		sink, err := p.sink(o, log)
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, sink)
	}
	p.start(sinks, spawn)
	return p, nil
}

// output is one of a process's output descriptors.
type output struct {
	fd   agentv1.StdioStream_FD
	kind stdio.FrameKind
	name string
	path string
}

// sink is where an output goes. Only a FIFO and the client of an exec may hold the guest up.
func (p *processIO) sink(o output, log *stdio.Log) (io.Writer, error) {
	switch {
	case o.path == streamScheme:
		return stdio.FrameWriter{W: p.client, Kind: o.kind}, nil
	case o.path != "":
		f, err := stdio.OpenFIFOWriter(o.path)
		if err != nil {
			return nil, err
		}
		p.fifos = append(p.fifos, f)
		return f, nil
	}
	t := tee{fanout: &p.fanout, kind: o.kind}
	if log != nil {
		t.log = log.Stream(o.name)
		p.records = append(p.records, t.log)
	}
	return t, nil
}

// tee writes to the log and to whoever is attached.
type tee struct {
	log    *stdio.LogStream
	fanout *stdio.Fanout
	kind   stdio.FrameKind
}

func (t tee) Write(b []byte) (int, error) {
	if t.log != nil {
		t.log.Write(b)
	}
	t.fanout.Write(t.kind, b)
	return len(b), nil
}

func (p *processIO) start(sinks []io.Writer, spawn func(func())) {
	for i, stream := range p.outputs {
		p.pumps.Go(func() { p.pump(stream, sinks[i]) })
	}
	if p.fifoIn != nil {
		// It ends with the FIFO, which the end of the process closes.
		spawn(func() {
			io.Copy(stdinWriter{p}, p.fifoIn)
			p.CloseStdin()
		})
	}
	spawn(func() {
		p.pumps.Wait()
		for _, r := range p.records {
			r.Close()
		}
		p.fanout.Close()
		if p.client != nil {
			p.client.end()
		}
		close(p.drained)
		p.close()
	})
}

// pump copies one output until the guest ends it. A sink that fails does not stop the guest: what follows is dropped.
func (p *processIO) pump(stream agentclient.Stream, sink io.Writer) {
	buf := make([]byte, pumpBuffer)
	for {
		if p.exiting.Load() {
			stream.SetReadDeadline(time.Now().Add(drainIdle))
		}
		n, err := stream.Read(buf)
		if n > 0 && sink != nil {
			if _, err := sink.Write(buf[:n]); err != nil {
				sink = nil
			}
		}
		if err != nil {
			return
		}
	}
}

// drain waits until the output of a process that has ended was written. died is closed when the VM ends, which cuts
// what does not come any more.
func (p *processIO) drain(died <-chan struct{}) {
	p.exiting.Store(true)
	for _, stream := range p.outputs {
		stream.SetReadDeadline(time.Now().Add(drainIdle))
	}
	select {
	case <-p.drained:
		return
	case <-died:
	}
	// What the host has is still written; a client that does not read does not hold the end up.
	timer := time.AfterFunc(drainIdle, p.close)
	defer timer.Stop()
	<-p.drained
}

// close closes everything. It is idempotent and ends the pumps.
func (p *processIO) close() {
	if p.in != nil {
		p.in.Close()
	}
	for _, stream := range p.outputs {
		stream.Close()
	}
	for _, f := range p.fifos {
		f.Close()
	}
	if p.fifoIn != nil {
		p.fifoIn.Close()
	}
	if p.client != nil {
		p.client.cut()
	}
}

// WriteStdin gives input to the process.
func (p *processIO) WriteStdin(b []byte) error {
	if p.in == nil {
		return fmt.Errorf("stdin: the process was created without it: %w", errdefs.ErrFailedPrecondition)
	}
	// Two attached clients take turns by the frame.
	p.inMu.Lock()
	defer p.inMu.Unlock()
	_, err := p.in.Write(b)
	return err
}

// CloseStdin ends the input. It is idempotent.
func (p *processIO) CloseStdin() {
	if p.in != nil {
		p.inOnce.Do(func() { p.in.CloseWrite() })
	}
}

// closeInput is the CloseIO of containerd: a FIFO ends when its writers have gone, everything else at once.
func (p *processIO) closeInput() {
	if p.fifoIn != nil {
		p.fifoIn.CloseInput()
		return
	}
	p.CloseStdin()
}

type stdinWriter struct{ p *processIO }

func (w stdinWriter) Write(b []byte) (int, error) {
	if err := w.p.WriteStdin(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// execClient is the one client of an exec. Output waits for it to come, and for it to read.
type execClient struct {
	reserved atomic.Bool
	joined   chan struct{}
	gone     chan struct{}
	goneOnce sync.Once

	mu sync.Mutex
	w  io.WriteCloser
}

func newExecClient() *execClient {
	return &execClient{joined: make(chan struct{}), gone: make(chan struct{})}
}

// reserve makes the caller the one who may join.
func (c *execClient) reserve() error {
	if !c.reserved.CompareAndSwap(false, true) {
		return fmt.Errorf("attach: the exec has a client already: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// join makes w the client, after reserve.
func (c *execClient) join(w io.WriteCloser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.w = w
	close(c.joined)
}

// Write writes whole frames to the client and blocks until it has come.
func (c *execClient) Write(frames []byte) (int, error) {
	select {
	case <-c.joined:
	case <-c.gone:
		return 0, errClientGone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.w.Write(frames)
}

var errClientGone = errors.New("the client has gone")

// end sends the last frame.
func (c *execClient) end() {
	select {
	case <-c.joined:
		c.mu.Lock()
		stdio.WriteFrames(c.w, stdio.KindEOF, nil)
		c.mu.Unlock()
	default:
	}
}

// cut ends writing, now and later. The connection is closed without the lock, which a blocked write holds.
func (c *execClient) cut() {
	c.goneOnce.Do(func() { close(c.gone) })
	select {
	case <-c.joined:
		c.w.Close()
	default:
	}
}
