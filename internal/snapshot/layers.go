package snapshot

import (
	"context"
	"crypto/rand"
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

	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/filelock"
	"github.com/pistis-run/pistis/internal/image"
)

const tempPrefix = "tmp-"

// form is what layers are made into.
type form struct {
	// what it is called in messages, in the plural.
	what string
	// extension and version end a layer's name. The version changes when the form changes in a way that what was made
	// before must not survive.
	version, extension string
	// write makes the form of a layer at path, where nothing is yet, and syncs it. It calls inherit with the
	// directories that the layer implies but does not describe, to get the attributes of those that are known.
	// dependent says that there are such directories. What a failure leaves at path is for the caller to remove.
	write func(ctx context.Context, path string, open opener, inherit inheriter) (dependent bool, err error)
	// open opens a finished layer for those above it.
	open func(path string) (lowerLayer, error)
	// whole tells what a disk has cut off from a layer that is whole, at little cost; nil where nothing tells.
	whole func(path string) (bool, error)
}

type (
	// opener starts reading a layer's tar.
	opener func() (io.ReadCloser, error)
	// inheriter finds the attributes of directories in the layers below. It waits for these to be made.
	inheriter func(dirs []string) (map[string]*entry, error)
)

func (f form) suffix() string { return f.version + f.extension }

// layerSource gives out the content of layers, as image.Service does: what it returns verifies itself, and fails
// instead of ending when it is not what the layer's DiffID says.
type layerSource interface {
	OpenLayer(ctx context.Context, layer image.Layer) (io.ReadCloser, error)
}

// Layers are layers of images in one form, in one directory.
type Layers struct {
	form   form
	root   string
	source layerSource
	lock   *filelock.Lock
	turns  *turns // bounds the conversions that run

	ctx    context.Context // of the conversions; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	collecting sync.Mutex // one Collect at a time

	mu      sync.Mutex                 // guards the fields below and the names in root
	flights map[digest.Digest]*flight  // by DiffID
	touched map[digest.Digest]struct{} // layers asked for since the running Collect began; nil when none runs
	sizes   map[string]size            // of layers, by name: they do not change
}

// flight is a conversion, for all that wait for it.
type flight struct {
	key     stacked
	stack   []image.Layer // of the first of them
	turn    *turn
	waiters int // under Layers.mu
	cancel  context.CancelFunc
	done    chan struct{}
	// After done.
	path string
	err  error
}

// open opens the directory root, which it owns until Close, and removes what a process that died left unfinished.
// FailedPrecondition when another process has it open.
func open(root string, source layerSource, form form) (*Layers, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("%s: %w", form.what, classify(err))
	}
	lock, err := filelock.TakeOver(filepath.Join(root, "lock"))
	if errdefs.IsUnavailable(err) {
		return nil, fmt.Errorf("%s %s: in use by another process: %w", form.what, root, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", form.what, classify(err))
	}
	l := &Layers{
		form: form, root: root, source: source, lock: lock, turns: newTurns(max(2, runtime.NumCPU()/2)),
		flights: map[digest.Digest]*flight{}, sizes: map[string]size{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if err := l.sweep(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s %s: %w", form.what, root, classify(err)), lock.Close())
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
		old := strings.HasSuffix(name, l.form.extension) && !strings.HasSuffix(name, l.form.suffix())
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

// path of a layer.
func (l *Layers) path(id digest.Digest) string {
	return filepath.Join(l.root, id.Algorithm().String()+"-"+id.Encoded()+l.form.suffix())
}

// stackedPath is of a layer that has taken over attributes of directories from the layers below.
func (l *Layers) stackedPath(s stacked) string {
	return filepath.Join(l.root, s.id.Algorithm().String()+"-"+s.id.Encoded()+"-"+s.below+l.form.suffix())
}

// Ensure returns the paths of an image's layers, the lowest first, making those that do not exist yet. The image must
// be in use (image.Service.Use), or a Collect may take them away again. A layer that occurs twice may have one path.
//
// Errors: InvalidArgument for a layer with entries that cannot be honoured, naming the entry, DataLoss for content that
// does not match its digest, ResourceExhausted for a full disk.
func (l *Layers) Ensure(ctx context.Context, img image.Image) ([]string, error) {
	paths := make([]string, len(img.Layers))
	for i, layer := range img.Layers {
		if err := layer.DiffID.Validate(); err != nil {
			return nil, fmt.Errorf("%s of image %s: layer %d: %w: %w", l.form.what, img.ID, i, err, errdefs.ErrInvalidArgument)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for i := range img.Layers {
		j := l.join(img.Layers[:i+1]) // the lowest one gets the first turn
		group.Go(func() (err error) {
			paths[i], err = l.await(ctx, j)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("%s of image %s: %w", l.form.what, img.ID, err)
	}
	return paths, nil
}

// Begin begins to make the uppermost of a stack of layers ahead of its use, or goes on with it. wait returns when it is there; it
// has to be called.
func (l *Layers) Begin(ctx context.Context, stack []image.Layer) (wait func() error) {
	if id := stack[len(stack)-1].DiffID; id.Validate() != nil {
		return func() error {
			return fmt.Errorf("%s: layer %q: no digest: %w", l.form.what, id, errdefs.ErrInvalidArgument)
		}
	}
	j := l.join(stack)
	return func() error {
		if _, err := l.await(ctx, j); err != nil {
			return fmt.Errorf("%s: %w", l.form.what, err)
		}
		return nil
	}
}

// joined is what join found of the last layer of a stack: a conversion to wait for, or its path.
type joined struct {
	key    stacked
	stack  []image.Layer
	flight *flight
	path   string
	err    error
}

// await returns the path of a layer that join was called for.
func (l *Layers) await(ctx context.Context, j joined) (string, error) {
	for j.flight != nil {
		path, err := l.wait(ctx, j.flight)
		late := errors.Is(err, errLate)
		// What came of the layer on top of others is of use where it does not depend on them. That it failed says something of
		// the same blobs only.
		mine := j.flight.key == j.key && (err == nil || sameBlobs(j.flight.stack, j.stack))
		if ctx.Err() != nil || (!late && (mine || path == l.path(j.key.id))) {
			return path, err
		}
		for i := range len(j.stack) - 1 {
			if !late {
				break
			}
			if _, err := l.await(ctx, l.join(j.stack[:i+1])); err != nil {
				return "", err
			}
		}
		j = l.join(j.stack)
	}
	return j.path, j.err
}

func (l *Layers) wait(ctx context.Context, f *flight) (string, error) {
	defer l.leave(f)
	select {
	case <-f.done:
		return f.path, f.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// join enters the conversion of the last layer of a stack, starting it where none runs, or finds the path of one that exists.
func (l *Layers) join(stack []image.Layer) joined {
	j := joined{key: keyOf(stack), stack: stack}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.touched != nil {
		l.touched[j.key.id] = struct{}{}
	}
	if j.flight = l.flights[j.key.id]; j.flight != nil {
		j.flight.waiters++
		return j
	}
	if j.path, j.err = l.existing(j.key); j.path != "" || j.err != nil {
		return j
	}
	if l.ctx.Err() != nil {
		j.err = fmt.Errorf("layer %s: the %s are being closed: %w", j.key.id, l.form.what, errdefs.ErrUnavailable)
		return j
	}
	ctx, cancel := context.WithCancel(l.ctx)
	j.flight = &flight{key: j.key, stack: stack, turn: l.turns.ask(), waiters: 1, cancel: cancel, done: make(chan struct{})}
	l.flights[j.key.id] = j.flight
	l.wg.Go(func() { l.fly(ctx, j.flight) })
	return j
}

// errLate ends a conversion that depends on one whose turn has not come: the turns may all be taken by such as wait for others.
var errLate = errors.New("a layer below it comes later")

// lower returns the paths of the layers below the last one of a stack, the uppermost first. Those that are being made are
// waited for, which leads downwards only, to ones that wait for no turn.
func (l *Layers) lower(ctx context.Context, stack []image.Layer) ([]string, error) {
	var paths []string
	for end := len(stack) - 1; end > 0; end-- {
		key := keyOf(stack[:end])
		l.mu.Lock()
		path, err := l.existing(key)
		f := l.flights[key.id]
		late := path == "" && (f == nil || f.key != key || !f.turn.has())
		if path == "" && err == nil && !late {
			f.waiters++
		}
		l.mu.Unlock()
		switch {
		case err != nil:
			return nil, err
		case late:
			return nil, errLate
		case path == "":
			if path, err = l.wait(ctx, f); err != nil && ctx.Err() == nil && !sameBlobs(f.stack, stack[:end]) {
				return nil, errLate // what is below is made of this stack's own blobs first
			} else if err != nil {
				return nil, err
			}
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// existing is the path of a layer that is there, or nothing. l.mu is held.
func (l *Layers) existing(key stacked) (string, error) {
	for _, path := range []string{l.path(key.id), l.stackedPath(key)} {
		if found, err := l.find(path); err != nil {
			return "", classify(err)
		} else if found {
			return path, nil
		}
	}
	return "", nil
}

// find tells whether a layer is there. One that was cut is not: it makes room for a new one. l.mu is held.
func (l *Layers) find(path string) (bool, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil || l.form.whole == nil {
		return err == nil, err
	}
	whole, err := l.form.whole(path)
	if whole || err != nil {
		return whole, err
	}
	delete(l.sizes, filepath.Base(path))
	return false, os.RemoveAll(path)
}

// leave is the end of a caller's interest. The last one ends the conversion, and waits until nothing is left of it.
func (l *Layers) leave(f *flight) {
	l.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last {
		f.cancel() // before somebody else begins anew
		if l.flights[f.key.id] == f {
			delete(l.flights, f.key.id)
		}
	}
	l.mu.Unlock()
	if last {
		<-f.done
	}
}

func (l *Layers) fly(ctx context.Context, f *flight) {
	defer f.cancel()
	path, err := l.make(ctx, f)
	l.turns.give(f.turn)
	if err != nil && !errors.Is(err, errLate) {
		err = fmt.Errorf("layer %s: %w", f.key.id, classify(err))
	}
	l.mu.Lock()
	if l.flights[f.key.id] == f {
		delete(l.flights, f.key.id)
	}
	l.mu.Unlock()
	f.path, f.err = path, err
	close(f.done)
}

// make converts the last layer of a stack when its turn comes, and gives the result its name.
func (l *Layers) make(ctx context.Context, f *flight) (path string, err error) {
	select {
	case <-f.turn.came:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	temp := filepath.Join(l.root, tempPrefix+rand.Text())
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	open := func() (io.ReadCloser, error) { return l.source.OpenLayer(ctx, f.stack[len(f.stack)-1]) }
	dependent, err := l.form.write(ctx, temp, open, func(dirs []string) (map[string]*entry, error) {
		lower, err := l.lower(ctx, f.stack)
		if err != nil {
			return nil, err
		}
		return inherit(ctx, dirs, lower, l.form.open)
	})
	if err != nil {
		return "", err
	}
	path = l.path(f.key.id)
	if dependent {
		path = l.stackedPath(f.key)
	}
	if err := failpoint.Hit(ctx, "layer.written"); err != nil {
		return "", err
	}
	l.mu.Lock()
	if err = ctx.Err(); err == nil { // else another one may be on its way already
		err = os.Rename(temp, path)
	}
	l.mu.Unlock()
	if err != nil {
		return "", err
	}
	if err := failpoint.Hit(ctx, "layer.named"); err != nil {
		return "", err
	}
	return path, syncDir(l.root)
}

// Collect removes all layers that inUse does not name by their DiffID. inUse is called once, after the collection
// began; layers that are asked for after that stay.
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
		return fmt.Errorf("collect %s: what is in use: %w", l.form.what, err)
	}
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return fmt.Errorf("collect %s: %w", l.form.what, classify(err))
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("collect %s: %w", l.form.what, err)
		}
		id, ok := l.parseName(e.Name())
		if _, keep := used[id]; !ok || keep {
			continue
		}
		if err := l.drop(id, e.Name()); err != nil {
			return fmt.Errorf("collect %s: %w", l.form.what, classify(err))
		}
	}
	return nil
}

// drop removes a layer, unless somebody asked for it meanwhile. Removing takes time: it loses its name first.
func (l *Layers) drop(id digest.Digest, name string) error {
	doomed := filepath.Join(l.root, tempPrefix+"gone-"+name)
	l.mu.Lock()
	if _, touched := l.touched[id]; touched {
		l.mu.Unlock()
		return nil
	}
	err := os.Rename(filepath.Join(l.root, name), doomed)
	delete(l.sizes, name)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return os.RemoveAll(doomed)
}

// parseName finds the DiffID in the name of a layer.
func (l *Layers) parseName(name string) (digest.Digest, bool) {
	base, ok := strings.CutSuffix(name, l.form.suffix())
	if !ok {
		return "", false
	}
	alg, rest, ok := strings.Cut(base, "-")
	hex, _, _ := strings.Cut(rest, "-")
	id := digest.Digest(alg + ":" + hex)
	return id, ok && id.Validate() == nil
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
		return fmt.Errorf("the file system of the layers is full, remove images or enlarge it: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	default:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
}
