package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/image"
)

const (
	// suffix of a layer's file. Its number grows when the conversion changes in a way that old files must not survive.
	suffix     = ".v1.ext4"
	tempPrefix = "tmp-"
)

// layerSource gives out the content of layers, as image.Service does: what it returns verifies itself, and fails
// instead of ending when it is not what the layer's DiffID says.
type layerSource interface {
	OpenLayer(ctx context.Context, layer image.Layer) (io.ReadCloser, error)
}

// Layers are the ext4 images of layers in one directory.
type Layers struct {
	root   string
	source layerSource
	lock   *os.File
	slots  chan struct{} // bounds the conversions that run

	ctx    context.Context // of the conversions; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	collecting sync.Mutex // one Collect at a time
	templates  sync.Mutex // one new scratch template at a time

	mu      sync.Mutex // guards the fields below and the names in root
	flights map[digest.Digest]*flight
	touched map[digest.Digest]struct{} // layers asked for since the running Collect began; nil when none runs
}

// flight is a conversion, for all that wait for it.
type flight struct {
	waiters int // under Layers.mu
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // after done
}

// Open opens the directory root, which it owns until Close, and removes what a process that died left unfinished.
// FailedPrecondition when another process has it open.
func Open(root string, source layerSource) (*Layers, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("layer disks: %w", classify(err))
	}
	lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("layer disks: %w", classify(err))
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("layer disks %s: in use by another process: %w", root, errdefs.ErrFailedPrecondition), lock.Close())
	}
	l := &Layers{root: root, source: source, lock: lock, slots: make(chan struct{}, max(2, runtime.NumCPU()/2)), flights: map[digest.Digest]*flight{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if err := l.sweep(); err != nil {
		return nil, errors.Join(fmt.Errorf("layer disks %s: %w", root, classify(err)), lock.Close())
	}
	return l, nil
}

// sweep removes what is no finished layer of this version.
func (l *Layers) sweep() error {
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		old := strings.HasSuffix(name, ".ext4") && !strings.HasSuffix(name, suffix)
		if !strings.HasPrefix(name, tempPrefix) && !old {
			continue
		}
		if err := os.RemoveAll(filepath.Join(l.root, name)); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the conversions that run and waits for them.
func (l *Layers) Close() error {
	l.cancel()
	l.wg.Wait()
	return l.lock.Close()
}

func (l *Layers) path(id digest.Digest) string {
	return filepath.Join(l.root, id.Algorithm().String()+"-"+id.Encoded()+suffix)
}

// Ensure returns the disks of an image's layers, the lowest first, making those that do not exist yet. The image must
// be in use (image.Service.Use), or a Collect may take them away again. A layer that occurs twice has one path.
//
// Errors: InvalidArgument for a layer with entries that cannot be honoured, naming the entry, DataLoss for content that
// does not match its digest, ResourceExhausted for a full disk.
func (l *Layers) Ensure(ctx context.Context, img image.Image) ([]string, error) {
	paths := make([]string, len(img.Layers))
	group, ctx := errgroup.WithContext(ctx)
	for i, layer := range img.Layers {
		if err := layer.DiffID.Validate(); err != nil {
			return nil, errors.Join(fmt.Errorf("disks of image %s: layer %d: %w: %w", img.ID, i, err, errdefs.ErrInvalidArgument), group.Wait())
		}
		paths[i] = l.path(layer.DiffID)
		group.Go(func() error { return l.ensure(ctx, layer) })
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("disks of image %s: %w", img.ID, err)
	}
	return paths, nil
}

// Prepare makes the disks of an image ahead of their use.
func (l *Layers) Prepare(ctx context.Context, img image.Image) error {
	_, err := l.Ensure(ctx, img)
	return err
}

func (l *Layers) ensure(ctx context.Context, layer image.Layer) error {
	f, err := l.join(layer)
	if f == nil || err != nil {
		return err
	}
	defer l.leave(layer.DiffID, f)
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join enters the conversion of a layer, starting it where none runs. It returns nil when the disk exists.
func (l *Layers) join(layer image.Layer) (*flight, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.touched != nil {
		l.touched[layer.DiffID] = struct{}{}
	}
	if f := l.flights[layer.DiffID]; f != nil {
		f.waiters++
		return f, nil
	}
	if _, err := os.Stat(l.path(layer.DiffID)); err == nil {
		return nil, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, classify(err)
	}
	if l.ctx.Err() != nil {
		return nil, fmt.Errorf("layer %s: the layer disks are being closed: %w", layer.DiffID, errdefs.ErrUnavailable)
	}
	ctx, cancel := context.WithCancel(l.ctx)
	f := &flight{waiters: 1, cancel: cancel, done: make(chan struct{})}
	l.flights[layer.DiffID] = f
	l.wg.Go(func() { l.fly(ctx, layer, f) })
	return f, nil
}

// leave is the end of a caller's interest. The last one ends the conversion.
func (l *Layers) leave(id digest.Digest, f *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		if l.flights[id] == f {
			delete(l.flights, id)
		}
	}
}

func (l *Layers) fly(ctx context.Context, layer image.Layer, f *flight) {
	defer f.cancel()
	err := l.make(ctx, layer)
	if err != nil {
		err = fmt.Errorf("layer %s: %w", layer.DiffID, classify(err))
	}
	l.mu.Lock()
	if l.flights[layer.DiffID] == f {
		delete(l.flights, layer.DiffID)
	}
	l.mu.Unlock()
	f.err = err
	close(f.done)
}

// make converts a layer and gives the result its name.
func (l *Layers) make(ctx context.Context, layer image.Layer) (err error) {
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	temp, err := os.CreateTemp(l.root, tempPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp.Name()))
		}
	}()
	err = convert(ctx, func() (io.ReadCloser, error) { return l.source.OpenLayer(ctx, layer) }, temp)
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	l.mu.Lock()
	err = os.Rename(temp.Name(), l.path(layer.DiffID))
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return syncDir(l.root)
}

// Collect removes the disks of all layers that inUse does not name by their DiffID. inUse is called once, after the
// collection began; disks that are asked for after that stay.
func (l *Layers) Collect(ctx context.Context, inUse func() (map[digest.Digest]struct{}, error)) error {
	l.collecting.Lock()
	defer l.collecting.Unlock()
	l.mu.Lock()
	l.touched = map[digest.Digest]struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.touched = nil
	}()
	used, err := inUse()
	if err != nil {
		return fmt.Errorf("collect layer disks: what is in use: %w", err)
	}
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return fmt.Errorf("collect layer disks: %w", classify(err))
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("collect layer disks: %w", err)
		}
		id, ok := parseName(e.Name())
		if _, keep := used[id]; !ok || keep {
			continue
		}
		if err := l.drop(id); err != nil {
			return fmt.Errorf("collect layer disks: %w", classify(err))
		}
	}
	return nil
}

// drop removes a disk, unless somebody asked for it meanwhile. Freeing a large file takes time: it loses its name first.
func (l *Layers) drop(id digest.Digest) error {
	doomed := filepath.Join(l.root, tempPrefix+"gone-"+id.Encoded())
	l.mu.Lock()
	if _, touched := l.touched[id]; touched {
		l.mu.Unlock()
		return nil
	}
	err := os.Rename(l.path(id), doomed)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return os.Remove(doomed)
}

// parseName is the reverse of path.
func parseName(name string) (digest.Digest, bool) {
	base, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return "", false
	}
	alg, hex, ok := strings.Cut(base, "-")
	id := digest.Digest(alg + ":" + hex)
	return id, ok && id.Validate() == nil
}

// Usage is what the disks occupy: bytes that are allocated, and files.
func (l *Layers) Usage(ctx context.Context) (bytes, inodes uint64, err error) {
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return 0, 0, fmt.Errorf("usage of layer disks: %w", classify(err))
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return 0, 0, fmt.Errorf("usage of layer disks: %w", classify(err))
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
	}
	return bytes, inodes, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// classify gives err the class of its cause.
func classify(err error) error {
	switch {
	case err == nil, !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the file system of the layer disks is full, remove images or enlarge it: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	default:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
}
