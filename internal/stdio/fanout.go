package stdio

import (
	"errors"
	"io"
	"slices"
	"sync"
)

// viewerBuffer is how much output waits for a viewer before it is dropped, in bytes.
const viewerBuffer = 1 << 20

// errSlow is what a viewer that does not keep up is told.
var errSlow = errors.New("dropped: the client does not keep up with the output")

// Fanout copies output to viewers that come and go. Writing never blocks: a viewer that does not keep up is dropped.
// The zero value is ready for use.
type Fanout struct {
	mu      sync.Mutex
	viewers []*Viewer
	closed  bool
}

// Viewer is one attached client. Its Run sends.
type Viewer struct {
	stdout, stderr bool
	fanout         *Fanout

	mu     sync.Mutex
	queue  []byte // frames
	err    error  // why no more frames come; io.EOF at the end of the output
	signal chan struct{}
}

// Join adds a viewer of the output from now on. The caller calls Run, or Leave.
func (f *Fanout) Join(stdout, stderr bool) *Viewer {
	v := &Viewer{stdout: stdout, stderr: stderr, fanout: f, signal: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		v.end(io.EOF)
	} else {
		f.viewers = append(f.viewers, v)
	}
	return v
}

// Write gives output to the viewers.
func (f *Fanout) Write(kind FrameKind, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.viewers = slices.DeleteFunc(f.viewers, func(v *Viewer) bool { return !v.push(kind, p) })
}

// Close tells the viewers that the output has ended.
func (f *Fanout) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, v := range f.viewers {
		v.end(io.EOF)
	}
	f.viewers = nil
}

// push queues output; false when the viewer is to be dropped.
func (v *Viewer) push(kind FrameKind, p []byte) bool {
	if kind == KindStdout && !v.stdout || kind == KindStderr && !v.stderr {
		return true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return false
	}
	if len(v.queue)+len(p) > viewerBuffer {
		v.endLocked(errSlow)
		return false
	}
	for len(p) > 0 {
		part := p[:min(len(p), MaxFrame)]
		v.queue = AppendFrame(v.queue, kind, part)
		p = p[len(part):]
	}
	v.wake()
	return true
}

func (v *Viewer) end(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.endLocked(err)
}

func (v *Viewer) endLocked(err error) {
	if v.err == nil {
		v.err = err
	}
	v.wake()
}

func (v *Viewer) wake() {
	select {
	case v.signal <- struct{}{}:
	default:
	}
}

// Leave ends Run; queued output is dropped.
func (v *Viewer) Leave() {
	v.fanout.mu.Lock()
	v.fanout.viewers = slices.DeleteFunc(v.fanout.viewers, func(o *Viewer) bool { return o == v })
	v.fanout.mu.Unlock()
	v.end(io.ErrClosedPipe)
}

// Run writes frames to w until the output ends (the last frame is then EOF), the viewer is dropped (ERROR), it
// leaves, or w fails. It is called once.
func (v *Viewer) Run(w io.Writer) error {
	defer v.Leave()
	var spare []byte
	for range v.signal {
		v.mu.Lock()
		queue, err := v.queue, v.err
		v.queue = spare[:0]
		v.mu.Unlock()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errSlow) {
			return err
		}
		if len(queue) > 0 {
			if _, err := w.Write(queue); err != nil {
				return err
			}
		}
		if spare = queue; cap(spare) > MaxFrame {
			spare = nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return WriteFrames(w, KindEOF, nil)
		case err != nil:
			return WriteFrames(w, KindError, []byte(err.Error()))
		}
	}
	return nil
}
