package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// Some tools write layers that hold a file but not the directories above it. Such a directory keeps the attributes that
// the layers below give it, which a layer by itself cannot know: so these are looked up in the finished layers below it, and
// what is made of it depends on them. What is implied in one of these has inherited its attributes too.

// lowerDir is a directory of a finished layer.
type lowerDir interface {
	// attributes are those that an entry of a layer would give it.
	attributes() (*entry, error)
	// children finds those of names that the directory has; what is no directory is nil.
	children(names map[string]*wish) (map[string]lowerDir, error)
}

// wish is a directory whose attributes are wanted, or one above such.
type wish struct {
	name   string
	wanted bool
	below  map[string]*wish
}

// wishes makes a tree of names.
func wishes(dirs []string) *wish {
	root := &wish{}
	for _, dir := range dirs {
		at := root
		for part := range strings.SplitSeq(dir, "/") {
			next := at.below[part]
			if next == nil {
				if at.below == nil {
					at.below = map[string]*wish{}
				}
				next = &wish{name: path.Join(at.name, part)}
				at.below[part] = next
			}
			at = next
		}
		at.wanted = true
	}
	return root
}

// inherit finds the attributes of directories in finished layers, given from the uppermost down. What no layer has is not
// in the result. Each directory of a layer is read once at most.
func inherit(ctx context.Context, dirs []string, lower []string, open func(path string) (lowerDir, io.Closer, error)) (map[string]*entry, error) {
	root, found := wishes(dirs), map[string]*entry{}
	for _, path := range lower {
		if len(root.below) == 0 {
			break
		}
		dir, closer, err := open(path)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(root.lookIn(ctx, dir, found), closer.Close()); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// lookIn notes what one layer has of what is wished for, and drops what the layers below it cannot tell.
func (w *wish) lookIn(ctx context.Context, dir lowerDir, found map[string]*entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := dir.attributes()
	if err != nil {
		return err
	}
	opaque := e.xattrs[opaqueXattr] == "y"
	if w.wanted {
		maps.DeleteFunc(e.xattrs, func(name, _ string) bool { return strings.HasPrefix(name, overlayPrefix) })
		e.name, w.wanted, found[w.name] = w.name, false, e
	}
	if len(w.below) == 0 {
		return nil
	}
	children, err := dir.children(w.below)
	if err != nil {
		return err
	}
	for name, next := range w.below {
		child, ok := children[name]
		if child != nil {
			if err := next.lookIn(ctx, child, found); err != nil {
				return err
			}
		}
		// What is no directory hides all that is below it in lower layers, as a whiteout does.
		if hidden := ok && child == nil; hidden || (ok && !next.wanted && len(next.below) == 0) {
			delete(w.below, name)
		}
	}
	if opaque {
		w.below = nil
	}
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
