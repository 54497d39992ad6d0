package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Some tools write layers that hold a file but not the directories above it. Such a directory keeps the attributes that
// the layers below give it, which a layer by itself cannot know: so these are looked up in the finished layers below it, and
// what is made of it depends on them. What is implied in one of these has inherited its attributes too.

// maxInherited bounds the extended attributes that all directories of a layer together inherit, in bytes.
const maxInherited = 64 << 20

// lowerLayer is a finished layer. A directory in it has a number, of which rootDirectory is known and noDirectory is none, and a
// name that nothing but its own form may need.
type lowerLayer interface {
	io.Closer
	// attributes are those that an entry of a layer would give a directory.
	attributes(number uint32, name string) (*entry, error)
	// children finds those of the wishes for what is below a directory that it has, and what is no directory as noDirectory.
	children(number uint32, wanted *wish) (map[string]uint32, error)
}

const (
	noDirectory   = 0
	rootDirectory = 2
)

// wish is a directory whose attributes are wanted, or one above such. Its name is a part of one that was wished for: a copy for each
// would be too much where they are many and nested deep.
type wish struct {
	name   string
	wanted bool
	below  map[string]*wish
}

// wishes makes a tree of names.
func wishes(dirs []string) *wish {
	root := &wish{}
	for _, dir := range dirs {
		at, start := root, 0
		for end := range len(dir) + 1 {
			if end < len(dir) && dir[end] != '/' {
				continue
			}
			part := dir[start:end]
			next := at.below[part]
			if next == nil {
				if at.below == nil {
					at.below = map[string]*wish{}
				}
				next = &wish{name: dir[:end]}
				at.below[part] = next
			}
			at, start = next, end+1
		}
		at.wanted = true
	}
	return root
}

// heritage is what is looked for in finished layers, and what was found.
type heritage struct {
	ctx   context.Context
	found map[string]*entry
	bytes int // of extended attributes
}

// inherit finds the attributes of directories in finished layers, given from the uppermost down. What no layer has is not
// in the result. Each directory of a layer is read once at most.
func inherit(ctx context.Context, dirs []string, lower []string, open func(path string) (lowerLayer, error)) (map[string]*entry, error) {
	root, h := wishes(dirs), heritage{ctx: ctx, found: map[string]*entry{}}
	for _, path := range lower {
		if len(root.below) == 0 {
			break
		}
		layer, err := open(path)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(h.look(layer, rootDirectory, root), layer.Close()); err != nil {
			return nil, err
		}
	}
	return h.found, nil
}

// look notes what a layer has of what is wished for, and drops what the layers below it cannot tell.
func (h *heritage) look(layer lowerLayer, number uint32, w *wish) error {
	if err := h.ctx.Err(); err != nil {
		return err
	}
	e, err := layer.attributes(number, w.name)
	if err != nil {
		return err
	}
	opaque := e.xattrs[opaqueXattr] == "y"
	if w.wanted {
		if err := h.take(e, w); err != nil {
			return err
		}
	}
	if len(w.below) == 0 {
		return nil
	}
	children, err := layer.children(number, w)
	if err != nil {
		return err
	}
	for name, child := range children {
		next := w.below[name]
		if child != noDirectory {
			if err := h.look(layer, child, next); err != nil {
				return err
			}
		}
		// What is no directory hides all that is below it in lower layers, as a whiteout does.
		if child == noDirectory || (!next.wanted && len(next.below) == 0) {
			delete(w.below, name)
		}
	}
	if opaque {
		w.below = nil
	}
	return nil
}

// take notes what a directory inherits. What overlays note of one is not inherited.
func (h *heritage) take(e *entry, w *wish) error {
	maps.DeleteFunc(e.xattrs, func(name, _ string) bool { return strings.HasPrefix(name, overlayPrefix) })
	for name, value := range e.xattrs {
		h.bytes += len(name) + len(value)
	}
	if h.bytes > maxInherited {
		return fmt.Errorf("directories inherit more than %d MiB of extended attributes from lower layers: %w", maxInherited>>20, errdefs.ErrInvalidArgument)
	}
	e.name, w.wanted = w.name, false
	h.found[w.name] = e
	return nil
}

// eachEntry reads a layer to its verified end and calls do for each entry that means something, with its number and content.
func eachEntry(ctx context.Context, open opener, do func(i int, e *entry, body io.Reader) error) (err error) {
	raw, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	source := &boundedReader{ctx: ctx, r: raw, left: maxTarBytes}
	buffered := bufio.NewReaderSize(source, readBuffer)
	in := tar.NewReader(buffered)
	for i := 0; ; i++ {
		hdr, err := in.Next()
		if source.err != nil {
			return source.err
		}
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, buffered)
			return err
		} else if err != nil {
			return damaged(err)
		}
		e, err := parseEntry(hdr)
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		err = do(i, e, content{in})
		if source.err != nil {
			return source.err
		} else if err != nil {
			return err
		}
	}
}

// content is that of one entry.
type content struct{ in *tar.Reader }

func (c content) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(err)
	}
	return n, err
}

// impliedDirs are the directories that no entry of the layer describes.
func (t *tree) impliedDirs() []string {
	var dirs []string
	for name, n := range t.nodes {
		if name != "" && n.kind == directory && n.index < 0 {
			dirs = append(dirs, name)
		}
	}
	slices.Sort(dirs)
	return dirs
}
