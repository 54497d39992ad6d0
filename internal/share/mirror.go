package share

import (
	"bytes"
	"cmp"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// watched is a share whose changes by the host are told to the guest. The guest's agent repeats each of them on its
// mount; what it asks for that purpose is answered from the mirror and does nothing on the host.
type watched struct {
	*files
	mirror *mirror
}

// newWatched takes over fs, also on error.
func newWatched(fs *files) (*watched, error) {
	m, err := newMirror(fs)
	if err != nil {
		fs.close()
		return nil, err
	}
	return &watched{fs, m}, nil
}

func (w *watched) close() {
	w.mirror.close()
	w.files.close()
}

func repeats(header *fuse.InHeader) bool { return header.Pid == agentv1.ShareRepeater }

// Lookup implements fuse.RawFileSystem.
func (w *watched) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if repeats(header) {
		return w.mirror.lookup(header.NodeId, name, out)
	}
	return w.files.Lookup(cancel, header, name, out)
}

// Mkdir implements fuse.RawFileSystem.
func (w *watched) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if repeats(&in.InHeader) {
		return w.mirror.make(in.NodeId, name, unix.S_IFDIR, out)
	}
	return w.files.Mkdir(cancel, in, name, out)
}

// Mknod implements fuse.RawFileSystem.
func (w *watched) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if repeats(&in.InHeader) {
		return w.mirror.make(in.NodeId, name, in.Mode&unix.S_IFMT, out)
	}
	return w.files.Mknod(cancel, in, name, out)
}

// Symlink implements fuse.RawFileSystem.
func (w *watched) Symlink(cancel <-chan struct{}, header *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if repeats(header) {
		return w.mirror.make(header.NodeId, name, unix.S_IFLNK, out)
	}
	return w.files.Symlink(cancel, header, target, name, out)
}

// Rename implements fuse.RawFileSystem.
func (w *watched) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if repeats(&in.InHeader) {
		return w.mirror.rename(in.NodeId, in.Newdir, oldName, newName)
	}
	return w.files.Rename(cancel, in, oldName, newName)
}

// Unlink implements fuse.RawFileSystem.
func (w *watched) Unlink(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	if repeats(header) {
		return w.mirror.remove(header.NodeId, name)
	}
	return w.files.Unlink(cancel, header, name)
}

// Rmdir implements fuse.RawFileSystem.
func (w *watched) Rmdir(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	if repeats(header) {
		return w.mirror.remove(header.NodeId, name)
	}
	return w.files.Rmdir(cancel, header, name)
}

// What dnotify reports of a directory; see fcntl(2).
const (
	dnCreate    = 0x4
	dnDelete    = 0x8
	dnRename    = 0x10
	dnMultishot = 0x80000000
)

// mirror is the root of a share as the guest was last told of it. It follows the host by comparing, so that nothing is
// missed when changes come faster than they are told.
//
// The kernel reports that the directory has changed by a signal (dnotify). inotify would say more than is needed, and a
// user has 128 instances of it by default, while a node has a server for each of its pods.
type mirror struct {
	files   *files
	dir     int // open for reading
	changed chan os.Signal

	mu    sync.Mutex
	names map[string]entry // as told
	host  map[string]entry // as it was when the changes were planned
	// gone are the files that the guest knows and the host has not any more, where the guest is to remove them.
	gone map[place]named
}

// attic is a name in the root under which the guest finds, as long as it repeats changes, what has gone together with
// the directory that it was in.
const attic = "..gone"

// entry is a name in the root. The guest gets a number of its own for a file that it does not know and that has gone.
type entry struct {
	key     key
	format  uint32 // S_IFMT of its mode
	standIn uint64
}

// place is a name in a directory.
type place struct {
	dir  uint64
	name string
}

func newMirror(fs *files) (*mirror, error) {
	root := fs.nodes.use(rootID)
	defer root.release()
	dir, err := fs.reopen(root, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	m := &mirror{files: fs, dir: dir, changed: make(chan os.Signal, 1)}
	signal.Notify(m.changed, unix.SIGIO)
	if err := m.begin(); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// begin asks for signals and then looks, so that no change falls between.
func (m *mirror) begin() error {
	// The process is their owner, or it would be the thread that asks, which may end.
	if _, err := unix.FcntlInt(uintptr(m.dir), unix.F_SETOWN, unix.Getpid()); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(m.dir), unix.F_NOTIFY, dnCreate|dnDelete|dnRename|dnMultishot); err != nil {
		return os.NewSyscallError("watch for changes (CONFIG_DNOTIFY)", err)
	}
	names, err := m.look()
	m.names = names
	return err
}

func (m *mirror) close() {
	unix.Close(m.dir)
	signal.Stop(m.changed)
}

// look lists the directory as it is on the host.
func (m *mirror) look() (map[string]entry, error) {
	if _, err := unix.Seek(m.dir, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	names := map[string]entry{}
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.Getdents(m.dir, buf)
		if err != nil || n == 0 {
			return names, err
		}
		for b := buf[:n]; len(b) > 0; {
			e, size := parseEntry(b)
			if size == 0 {
				return nil, unix.EIO
			}
			b = b[size:]
			if !validName(e.Name) {
				continue
			}
			fd, st, err := lookup(m.dir, e.Name)
			if err != nil {
				continue // it has gone again
			}
			unix.Close(fd)
			names[e.Name] = entry{key: keyOf(&st), format: uint32(st.Mode) & unix.S_IFMT}
		}
	}
}

// settled looks until it sees the same twice, so that it is of one moment; of a host that never rests it takes what it
// saw last.
func (m *mirror) settled() (map[string]entry, error) {
	last, err := m.look()
	for range 8 {
		if err != nil {
			return nil, err
		}
		before := last
		if last, err = m.look(); maps.Equal(before, last) {
			break
		}
	}
	return last, err
}

// plan looks at the host and returns what has changed, in the order in which the kubelet does it: what is new, what
// another file has taken the name of, what has gone.
func (m *mirror) plan() ([]*agentv1.ShareChange, error) {
	host, err := m.settled()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.host, m.gone = host, map[place]named{}
	var made, renamed, removed []*agentv1.ShareChange
	for _, name := range byTypeAndName(host) {
		now := host[name]
		told, known := m.names[name]
		switch {
		case !known:
			made = append(made, change(agentv1.ShareChange_MAKE, name, now.format))
		case told.key != now.key:
			if _, there := m.names[draft(name)]; !there {
				renamed = append(renamed, change(agentv1.ShareChange_MAKE, draft(name), now.format))
			}
			step := change(agentv1.ShareChange_RENAME, draft(name), 0)
			step.To = []byte(name)
			renamed = append(renamed, step)
		}
	}
	dirs := map[uint64]string{}
	for _, name := range slices.Backward(byTypeAndName(m.names)) {
		if _, there := host[name]; there {
			continue
		}
		told := m.names[name]
		removed = append(removed, change(agentv1.ShareChange_REMOVE, name, told.format))
		if id := m.files.nodes.known(told.key); told.format == unix.S_IFDIR && id != 0 {
			at := place{rootID, name}
			dirs[id], m.gone[at] = name, named{id, at, told.format}
		}
	}
	if len(removed) > 0 {
		removed = slices.Concat(m.goneLocked(dirs), removed)
	}
	return slices.Concat(made, renamed, removed), nil
}

// goneLocked are the removals of the files below the root that the guest knows and that have gone, the innermost first.
// dirs are the directories that have gone from the root.
func (m *mirror) goneLocked(dirs map[uint64]string) []*agentv1.ShareChange {
	var steps []*agentv1.ShareChange
	known := m.files.nodes.all()
	for id, f := range known {
		if f.place.dir == rootID || !m.hasGone(id) {
			continue
		}
		path, ok := f.below(dirs, known)
		if !ok { // its directory is not known any more
			if m.names[attic].standIn == 0 {
				m.names[attic] = entry{format: unix.S_IFDIR, standIn: m.files.nodes.number()}
			}
			f.place = place{m.names[attic].standIn, strconv.FormatUint(id, 10)}
			path = attic + "/" + f.place.name
		}
		m.gone[f.place] = f
		steps = append(steps, change(agentv1.ShareChange_REMOVE, path, f.format))
	}
	depth := func(c *agentv1.ShareChange) int { return bytes.Count(c.Path, []byte("/")) }
	slices.SortFunc(steps, func(a, b *agentv1.ShareChange) int {
		return cmp.Or(cmp.Compare(depth(b), depth(a)), bytes.Compare(a.Path, b.Path))
	})
	return steps
}

// below is the path of a file below one of the directories, which are in the root.
func (f named) below(dirs map[uint64]string, known map[uint64]named) (string, bool) {
	path := f.place.name
	for at := f.place.dir; len(path) < unix.PathMax; {
		if top, ok := dirs[at]; ok {
			return top + "/" + path, true
		}
		dir, ok := known[at]
		if !ok {
			break
		}
		path, at = dir.place.name+"/"+path, dir.place.dir
	}
	return "", false
}

// hasGone says whether a file has no name left.
func (m *mirror) hasGone(id uint64) bool {
	n := m.files.nodes.use(id)
	if n == nil {
		return false // nothing can be told of it
	}
	defer n.release()
	var st unix.Stat_t
	return unix.Fstat(n.fd, &st) == nil && st.Nlink == 0
}

func change(kind agentv1.ShareChange_Kind, path string, mode uint32) *agentv1.ShareChange {
	return &agentv1.ShareChange{Kind: kind, Path: []byte(path), Mode: mode}
}

// draft is the name under which what is to replace a file is made, as the kubelet names it.
func draft(name string) string {
	const suffix = "_tmp"
	return name[:min(len(name), maxName-len(suffix))] + suffix
}

// byTypeAndName orders names, directories first.
func byTypeAndName(names map[string]entry) []string {
	isDir := func(name string) int {
		if names[name].format == unix.S_IFDIR {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Keys(names), func(a, b string) int {
		return cmp.Or(cmp.Compare(isDir(a), isDir(b)), cmp.Compare(a, b))
	})
}

// told notes that the guest was told all that was planned.
func (m *mirror) told() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names, m.gone = m.host, nil
}

// lookup finds a name where the guest was last told it is.
func (m *mirror) lookup(dir uint64, name string, out *fuse.EntryOut) fuse.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f, ok := m.gone[place{dir, name}]; ok {
		if !m.files.again(f.id, out) {
			// The guest has just forgotten it; what it knows in there is to be found.
			standIn(f.id, f.format, out)
		}
		return fuse.OK
	}
	e, ok := m.names[name]
	if dir != rootID || !ok {
		return fuse.ENOENT
	}
	if e.standIn == 0 && m.files.again(m.files.nodes.known(e.key), out) {
		return fuse.OK
	}
	m.standInLocked(name, e, out)
	return fuse.OK
}

// standInLocked gives the guest something under a name that it has no file for. It is found only by who repeats a
// change: everybody else asks the host again.
func (m *mirror) standInLocked(name string, e entry, out *fuse.EntryOut) {
	if e.standIn == 0 {
		e.standIn = m.files.nodes.number()
	}
	m.names[name] = e
	standIn(e.standIn, e.format, out)
}

// standIn makes up a file. Its attributes hold, since nobody is to ask for them.
func standIn(id uint64, format uint32, out *fuse.EntryOut) {
	*out = fuse.EntryOut{NodeId: id, Generation: 1, Attr: fuse.Attr{Ino: id, Mode: format | 0o700, Nlink: 1}}
	out.SetAttrTimeout(time.Hour)
}

// make tells the guest of a new name: with the file where it is still there.
func (m *mirror) make(dir uint64, name string, format uint32, out *fuse.EntryOut) fuse.Status {
	if dir != rootID || !validName(name) {
		return fuse.EPERM
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now, ok := m.host[name]
	if ok && now.format == format {
		root := m.files.nodes.use(rootID)
		defer root.release()
		if found, code := m.files.entry(root, name, out); code.Ok() && found == format {
			m.names[name] = now
			return fuse.OK
		} else if code.Ok() {
			m.files.nodes.forget(out.NodeId, 1)
		}
	}
	m.standInLocked(name, entry{format: format}, out)
	return fuse.OK
}

func (m *mirror) rename(from, to uint64, oldName, newName string) fuse.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.names[oldName]
	if from != rootID || to != rootID || !ok {
		return fuse.ENOENT
	}
	m.names[newName] = e
	delete(m.names, oldName)
	return fuse.OK
}

func (m *mirror) remove(dir uint64, name string) fuse.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dir == rootID {
		delete(m.names, name)
	}
	delete(m.gone, place{dir, name})
	return fuse.OK
}
