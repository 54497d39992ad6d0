package snapshot

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxSubtrees bounds how often a file may replace a directory: each time costs a look at all entries.
const maxSubtrees = 1000

// entry is one file of a layer after checks.
type entry struct {
	name         string // relative to the layer's root, which is ""
	kind         byte   // tar.TypeReg, TypeDir, TypeSymlink, TypeLink, TypeChar, TypeBlock, TypeFifo
	link         string // target of a symbolic link as it is, of a hard link as a clean name
	size         int64
	mode         int64
	uid, gid     int
	major, minor int64
	mtime        time.Time
	xattrs       map[string]string

	// whiteout hides target in lower layers; opaque hides all that lower layers have in the directory target.
	whiteout, opaque bool
	target           string
}

// whiteoutOf recognizes the names that stand for a removal. Those of aufs's own files mean nothing.
func (e *entry) whiteoutOf() (ignored bool, err error) {
	dir, base := path.Split(e.name)
	dir = strings.TrimSuffix(dir, "/")
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, metaPrefix) {
			return true, nil
		}
		if strings.HasPrefix(part, whiteoutPrefix) {
			return false, errors.New("it lies below a whiteout")
		}
	}
	switch {
	case base == opaqueMarker:
		e.opaque, e.target = true, dir
	case strings.HasPrefix(base, metaPrefix):
		return true, nil
	case strings.HasPrefix(base, whiteoutPrefix):
		hidden := strings.TrimPrefix(base, whiteoutPrefix)
		if hidden == "" || hidden == "." || hidden == ".." {
			return false, errors.New("a whiteout of nothing")
		}
		e.whiteout, e.target = true, path.Join(dir, hidden)
	default:
		return false, nil
	}
	e.kind, e.mode = tar.TypeReg, 0
	return false, nil
}

// plan says how to read a layer in which entries replace others, so that the last one wins.
type plan struct {
	skip   map[int]bool        // entries, by their number
	opaque map[string]struct{} // directories that hide the lower layers', though no entry says so by itself
}

// conflicts reports whether anything was replaced so far.
func (t *tree) conflicts() bool {
	return t.replaced || len(t.plan.skip) > 0 || len(t.plan.opaque) > 0
}

type nodeKind uint8

const (
	absent nodeKind = iota
	directory
	symlink
	removal // a whiteout
	file    // all else
)

type node struct {
	kind   nodeKind
	linked bool // a hard link leads here
	index  int  // of the entry; -1 for a directory that is only implied
}

// tree knows what a layer holds so far, and which entries turned out to be replaced.
type tree struct {
	nodes    map[string]node
	again    map[string][]int // further entries of a directory: repeated ones, and its opaque markers
	plan     plan
	replaced bool // some directory by a file
	relinks  bool // whoever writes the layer can replace one of several hard links
	subtrees int
	lastDir  string   // that is known to be a directory
	implied  []string // directories that the last entry implied, the uppermost first
}

func newTree() *tree {
	return &tree{
		nodes: map[string]node{"": {kind: directory, index: -1}},
		again: map[string][]int{},
		plan:  plan{skip: map[int]bool{}, opaque: map[string]struct{}{}},
	}
}

// add takes in entry number i. Its errors name the entry.
func (t *tree) add(i int, e *entry) error {
	t.implied = t.implied[:0]
	if err := t.place(i, e); err != nil {
		return fmt.Errorf("entry %s: %w", quote(e.name), err)
	}
	if len(t.nodes) > maxEntries {
		return errTooMany
	}
	return nil
}

var errTooMany = fmt.Errorf("more than %d files and directories: %w", maxEntries, errdefs.ErrInvalidArgument)

func (t *tree) place(i int, e *entry) error {
	at := e.name
	if e.whiteout || e.opaque {
		at = e.target
	}
	if err := t.parents(at); err != nil {
		return err
	}
	old := t.nodes[at]
	switch {
	case e.opaque:
		return t.placeOpaque(i, at, old)
	case e.whiteout:
		t.placeWhiteout(i, at, old)
		return nil
	case e.kind == tar.TypeDir:
		return t.placeDir(i, at, old)
	}
	if at == "" {
		return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalidArgument)
	}
	if e.kind == tar.TypeLink {
		if at == e.link {
			return fmt.Errorf("a hard link to itself: %w", errdefs.ErrInvalidArgument)
		}
		if err := t.linkTo(e.link); err != nil {
			return err
		}
	}
	return t.placeFile(i, e, at, old)
}

// parents makes sure that all above name are directories, adding those that are only implied.
func (t *tree) parents(name string) error {
	dir := parent(name)
	if dir == t.lastDir {
		return nil
	}
	for end := range dir + "/" {
		if end == 0 || (end < len(dir) && dir[end] != '/') {
			continue
		}
		prefix := dir[:end]
		switch n := t.nodes[prefix]; n.kind {
		case directory:
		case absent:
			t.imply(prefix)
		case removal: // what the whiteout hides is replaced, not just gone
			t.plan.skip[n.index] = true
			t.plan.opaque[prefix] = struct{}{}
			t.imply(prefix)
		case symlink:
			return fmt.Errorf("it lies below %s, which is a symbolic link: %w", quote(prefix), errdefs.ErrInvalidArgument)
		default:
			return fmt.Errorf("it lies below %s, which is not a directory: %w", quote(prefix), errdefs.ErrInvalidArgument)
		}
	}
	t.lastDir = dir
	return nil
}

func (t *tree) imply(dir string) {
	t.nodes[dir] = node{kind: directory, index: -1}
	t.implied = append(t.implied, dir)
}

func parent(name string) string {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)]
}

func (t *tree) placeOpaque(i int, at string, old node) error {
	switch old.kind {
	case removal:
		t.plan.skip[old.index] = true
		t.imply(at)
	case absent:
		t.imply(at)
	case directory:
	default:
		return fmt.Errorf("it marks a file as an opaque directory: %w", errdefs.ErrInvalidArgument)
	}
	t.again[at] = append(t.again[at], i)
	return nil
}

// placeWhiteout: a whiteout is for lower layers, so what this layer has under the name stays.
func (t *tree) placeWhiteout(i int, at string, old node) {
	switch old.kind {
	case absent:
		t.nodes[at] = node{kind: removal, index: i}
	case directory:
		t.plan.skip[i] = true
		t.plan.opaque[at] = struct{}{}
	default:
		t.plan.skip[i] = true
	}
}

func (t *tree) placeDir(i int, at string, old node) error {
	switch old.kind {
	case directory: // the later one's attributes win, the content is merged
		if old.index < 0 {
			break
		}
		t.again[at] = append(t.again[at], i)
		return nil
	case removal:
		t.plan.skip[old.index] = true
		t.plan.opaque[at] = struct{}{}
	case file, symlink:
		if err := t.replace(old); err != nil {
			return err
		}
	}
	t.nodes[at] = node{kind: directory, index: i}
	return nil
}

func (t *tree) placeFile(i int, e *entry, at string, old node) error {
	switch old.kind {
	case directory:
		if err := t.replaceDir(at); err != nil {
			return err
		}
	case removal:
		t.plan.skip[old.index] = true
	case file, symlink:
		if err := t.replace(old); err != nil {
			return err
		}
	}
	n := node{kind: file, index: i}
	if e.kind == tar.TypeSymlink {
		n.kind = symlink
	}
	t.nodes[at] = n
	return nil
}

// replace drops the entry of a file.
func (t *tree) replace(old node) error {
	if old.linked && !t.relinks {
		return fmt.Errorf("it replaces a file that other names are linked to: %w", errdefs.ErrNotImplemented)
	}
	t.plan.skip[old.index] = true
	return nil
}

// replaceDir drops the entries of a directory and of all below it.
func (t *tree) replaceDir(at string) error {
	if t.subtrees++; t.subtrees > maxSubtrees {
		return fmt.Errorf("more than %d directories are replaced by files: %w", maxSubtrees, errdefs.ErrInvalidArgument)
	}
	t.lastDir, t.replaced = "", true
	below := at + "/"
	for name, n := range t.nodes {
		if name != at && !strings.HasPrefix(name, below) {
			continue
		}
		if n.linked && !t.relinks {
			return fmt.Errorf("it replaces a directory with files that other names are linked to: %w", errdefs.ErrNotImplemented)
		}
		if n.index >= 0 {
			t.plan.skip[n.index] = true
		}
		for _, i := range t.again[name] {
			t.plan.skip[i] = true
		}
		delete(t.again, name)
		delete(t.plan.opaque, name)
		delete(t.nodes, name)
	}
	return nil
}

// linkTo checks the target of a hard link.
func (t *tree) linkTo(target string) error {
	n := t.nodes[target]
	switch n.kind {
	case file, symlink:
		n.linked = true
		t.nodes[target] = n
		return nil
	case directory:
		return fmt.Errorf("a hard link to the directory %s: %w", quote(target), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("a hard link to %s, which this layer does not hold: %w", quote(target), errdefs.ErrInvalidArgument)
}
