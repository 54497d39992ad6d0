package rootfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// fresh is how old a measured usage may be before it is measured again, stale how old one may be to be told at all.
	fresh = 10 * time.Second
	stale = time.Minute
)

// Watched are roots whose usage is told from what was measured before, as who lists statistics must not wait for a walk
// through all that containers have written. Nothing is measured while nobody asks.
type Watched struct {
	*Roots

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	known map[string]usage
	// queue has the ids to be measured again, one after the other by one goroutine; working tells that there is one.
	queue   []string
	working bool
}

type usage struct {
	bytes, inodes uint64
	at            time.Time
	queued        bool
}

// Watch adds to roots what Watched says. The caller closes it.
func Watch(r *Roots) *Watched {
	w := &Watched{Roots: r, known: map[string]usage{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Close ends the measuring.
func (w *Watched) Close() error {
	w.cancel()
	w.work.Wait()
	return nil
}

// Usage is that of Roots, as it was a few seconds ago.
func (w *Watched) Usage(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	if u, ok := w.recall(id); ok {
		return u.bytes, u.inodes, nil
	}
	at := time.Now()
	bytes, inodes, err = w.Roots.Usage(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	w.mu.Lock()
	w.known[id] = usage{bytes: bytes, inodes: inodes, at: at}
	w.mu.Unlock()
	if _, err := os.Lstat(filepath.Join(w.dir, id)); err != nil {
		w.forget(id) // it was removed meanwhile
	}
	return bytes, inodes, nil
}

// Total is the usage of all roots together. One that cannot be measured does not count: its container, which may have
// seen to that, must not hide what the others use.
func (w *Watched) Total(ctx context.Context) (bytes, inodes uint64, err error) {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return 0, 0, fmt.Errorf("usage of all roots: %w", classify(err))
	}
	for _, entry := range entries {
		b, i, err := w.Usage(ctx, entry.Name())
		if ctx.Err() != nil {
			return 0, 0, fmt.Errorf("usage of all roots: %w", ctx.Err())
		}
		if err == nil {
			bytes, inodes = bytes+b, inodes+i
		}
	}
	return bytes, inodes, nil
}

// recall returns what is known and not stale, and sees to it that it becomes fresh.
func (w *Watched) recall(id string) (usage, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u, ok := w.known[id]
	age := time.Since(u.at)
	if !ok || age >= stale {
		return u, false
	}
	if age >= fresh && !u.queued && w.ctx.Err() == nil {
		u.queued = true
		w.known[id] = u
		w.queue = append(w.queue, id)
		if !w.working {
			w.working = true
			w.work.Go(w.measure)
		}
	}
	return u, true
}

// measure works the queue off.
func (w *Watched) measure() {
	for {
		w.mu.Lock()
		if len(w.queue) == 0 || w.ctx.Err() != nil {
			w.working = false
			w.mu.Unlock()
			return
		}
		id := w.queue[0]
		w.queue = w.queue[1:]
		w.mu.Unlock()
		at := time.Now()
		bytes, inodes, err := w.Roots.Usage(w.ctx, id)
		w.mu.Lock()
		if _, ok := w.known[id]; ok && err == nil {
			w.known[id] = usage{bytes: bytes, inodes: inodes, at: at}
		} else {
			delete(w.known, id) // the next who asks measures by himself, and gets the error
		}
		w.mu.Unlock()
	}
}

// Remove is that of Roots.
func (w *Watched) Remove(ctx context.Context, id string) error {
	if err := w.Roots.Remove(ctx, id); err != nil {
		return err
	}
	w.forget(id)
	return nil
}

func (w *Watched) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.known, id)
}
