package guestimage

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

// entry is one file of the initrd. Its content is data, or the target of a link.
type entry struct {
	mode         uint32
	major, minor uint32
	data         []byte
}

// tree maps names without a leading slash to entries.
type tree map[string]entry

func (t tree) dir(name string, perm uint32) { t[name] = entry{mode: modeDir | perm} }
func (t tree) file(name string, perm uint32, data []byte) {
	t[name] = entry{mode: modeFile | perm, data: data}
}
func (t tree) link(name, target string) {
	t[name] = entry{mode: modeLink | 0o777, data: []byte(target)}
}
func (t tree) char(name string, perm, major, minor uint32) {
	t[name] = entry{mode: modeChar | perm, major: major, minor: minor}
}

// writeCPIO writes the tree as a newc archive: sorted, owned by root, without times, so that the same tree
// always gives the same bytes. Directories above an entry that the tree does not name are added.
func (t tree) writeCPIO(w io.Writer) error {
	all := maps.Clone(t)
	for name := range t {
		if name == "" || name == "." || strings.HasPrefix(name, "/") || path.Clean(name) != name {
			return fmt.Errorf("initrd: bad file name %q", name)
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all.dir(dir, 0o755)
			}
		}
	}
	for i, name := range slices.Sorted(maps.Keys(all)) {
		if err := writeEntry(w, uint32(i+1), name, all[name]); err != nil {
			return err
		}
	}
	return writeEntry(w, 0, "TRAILER!!!", entry{})
}

func writeEntry(w io.Writer, inode uint32, name string, e entry) error {
	if int64(len(e.data)) >= 1<<32 {
		return fmt.Errorf("initrd: %s is larger than 4 GiB", name)
	}
	links := 1
	if e.mode&modeDir == modeDir {
		links = 2
	}
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, len(name)+1, 0)
	head := append([]byte(header), name...)
	head = append(head, 0)
	for _, part := range [][]byte{head, e.data} {
		if _, err := w.Write(part); err != nil {
			return err
		}
		if pad := (4 - len(part)%4) % 4; pad > 0 {
			if _, err := w.Write(make([]byte, pad)); err != nil {
				return err
			}
		}
	}
	return nil
}
