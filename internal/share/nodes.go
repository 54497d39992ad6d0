package share

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// rootID is FUSE's number of the root.
const rootID = fuse.FUSE_ROOT_ID

// statMask is what the server asks of a file.
const statMask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID | unix.STATX_BTIME

// descriptor is a file descriptor that several requests may use. It is closed when the last has let it go: a guest
// that forgets a file while it uses it must not get another one under its number.
type descriptor struct {
	fd   int
	refs atomic.Int32
}

func newDescriptor(fd int) *descriptor {
	d := &descriptor{fd: fd}
	d.refs.Store(1)
	return d
}

func (d *descriptor) release() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// key says which file a node is. The mount counts: the same file may be read-only through another one. The birth time
// tells a file from its predecessor with the same number.
type key struct {
	mount, dev, ino uint64
	born            unix.StatxTimestamp
}

func keyOf(st *unix.Statx_t) key {
	k := key{mount: st.Mnt_id, dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		k.born = st.Btime
	}
	return k
}

// node is a file that the guest knows.
type node struct {
	*descriptor // O_PATH
	id          uint64
	key         key
	format      uint32 // S_IFMT of its mode
	lookups     uint64
}

// nodes is the table of a share's files. Numbers are never used again.
type nodes struct {
	mu    sync.Mutex
	byID  map[uint64]*node
	byKey map[key]*node
	next  uint64
	// devices numbers the file systems below the root, to tell apart inodes of the same number.
	devices map[uint64]uint64
}

// newNodes takes over the descriptor of the root.
func newNodes(root int) (*nodes, error) {
	var st unix.Statx_t
	if err := statx(root, &st); err != nil {
		return nil, err
	}
	n := &node{descriptor: newDescriptor(root), id: rootID, key: keyOf(&st), format: uint32(st.Mode) & unix.S_IFMT, lookups: 1}
	return &nodes{
		byID: map[uint64]*node{rootID: n}, byKey: map[key]*node{n.key: n}, next: rootID + 1,
		devices: map[uint64]uint64{n.key.dev: 0},
	}, nil
}

func statx(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT, statMask, st)
}

// use returns a node that the caller releases; nil for a number that the guest has not been told or has forgotten.
func (t *nodes) use(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n != nil {
		n.refs.Add(1)
	}
	return n
}

// add takes over the descriptor of a file and counts a lookup. The node is the guest's until it forgets it.
func (t *nodes) add(fd int, st *unix.Statx_t) uint64 {
	k := keyOf(st)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[k]; n != nil {
		n.lookups++
		unix.Close(fd)
		return n.id
	}
	n := &node{descriptor: newDescriptor(fd), id: t.next, key: k, format: uint32(st.Mode) & unix.S_IFMT, lookups: 1}
	t.next++
	t.byID[n.id], t.byKey[k] = n, n
	return n.id
}

// forget takes lookups from a node. The root stays.
func (t *nodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == rootID {
		return
	}
	n.lookups -= min(lookups, n.lookups)
	if n.lookups > 0 {
		return
	}
	delete(t.byID, id)
	delete(t.byKey, n.key)
	n.release()
}

// inode is a file's number within the share.
func (t *nodes) inode(dev, ino uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.devices[dev]
	if !ok {
		i = uint64(len(t.devices))
		t.devices[dev] = i
	}
	return ino ^ i<<48
}

// close lets all files go.
func (t *nodes) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.byID {
		n.release()
	}
	clear(t.byID)
	clear(t.byKey)
}

// handles are the open files of a share.
type handles struct {
	mu   sync.Mutex
	open map[uint64]*handle
	next uint64
}

// handle is an open file or directory; mu keeps the position of a directory.
type handle struct {
	*descriptor
	mu  sync.Mutex
	dir *listing
}

func (t *handles) add(fd int, dir *listing) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	t.open[t.next] = &handle{descriptor: newDescriptor(fd), dir: dir}
	return t.next
}

func (t *handles) use(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[id]
	if h != nil {
		h.refs.Add(1)
	}
	return h
}

func (t *handles) remove(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.open[id]; h != nil {
		delete(t.open, id)
		h.release()
	}
}

func (t *handles) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.open {
		h.release()
	}
	clear(t.open)
}

// procPath is a path to what a descriptor refers to, below dir, which is /proc/self/fd or a bind of it.
func procPath(dir string, fd int) string { return dir + "/" + strconv.Itoa(fd) }
