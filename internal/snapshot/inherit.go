package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
)

// Some tools write layers that hold a file but not the directories above it. Such a directory keeps the attributes that
// the layers below give it, which a disk by itself cannot know: so these are looked up, and the disk depends on them.

// inherit finds the attributes of directories in lower layers, given from the uppermost down. What no layer describes
// is not in the result.
func inherit(ctx context.Context, dirs []string, lower []opener) (map[string]*entry, error) {
	wanted, found := map[string]bool{}, map[string]*entry{}
	for _, d := range dirs {
		wanted[d] = true
	}
	for _, open := range lower {
		if len(wanted) == 0 {
			break
		}
		hidden, err := lookFor(ctx, wanted, found, open)
		if err != nil {
			return nil, err
		}
		maps.DeleteFunc(wanted, func(dir string, _ bool) bool { return found[dir] != nil || isHidden(dir, hidden) })
	}
	return found, nil
}

// lookFor notes what one layer says of the wanted directories, and returns the names below which it hides all lower
// layers.
func lookFor(ctx context.Context, wanted map[string]bool, found map[string]*entry, open opener) (hidden map[string]bool, err error) {
	hidden = map[string]bool{}
	err = eachEntry(ctx, open, func(_ int, e *entry, _ io.Reader) error {
		switch {
		case e.whiteout, e.opaque:
			hidden[e.target] = true
		case e.kind != tar.TypeDir:
			hidden[e.name] = true
		case wanted[e.name]:
			found[e.name] = e
		}
		if len(hidden) > maxEntries {
			return errTooMany
		}
		return nil
	})
	return hidden, err
}

func isHidden(dir string, hidden map[string]bool) bool {
	for ; dir != ""; dir = parent(dir) {
		if hidden[dir] {
			return true
		}
	}
	return hidden[""]
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
