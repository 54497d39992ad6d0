package share

import (
	"math"
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

// node is a file that the guest knows. Its descriptor may have been closed to make room: then it is opened again by its
// name in its directory, and must be the same file.
type node struct {
	id      uint64
	key     key
	format  uint32 // S_IFMT of its mode
	lookups uint64
	desc    *descriptor // O_PATH; nil: closed
	dir     uint64      // where it was looked up last
	name    string
}

// used is a node with its descriptor, which the user releases.
type used struct {
	*descriptor
	id     uint64
	format uint32
}

// nodes is the table of a share's files. Numbers are never used again.
type nodes struct {
	mu    sync.Mutex
	byID  map[uint64]*node
	byKey map[key]*node
	next  uint64
	room  *budget
	// devices numbers the file systems below the root, to tell apart inodes of the same number.
	devices map[uint64]uint64
	// passing: what is mounted below the root comes and goes with the host. No descriptor of a file there is kept, or the
	// host could not unmount it.
	passing bool
	mount   uint64 // the root's
}

// newNodes takes over the descriptor of the root.
func newNodes(root int, room *budget) (*nodes, error) {
	var st unix.Statx_t
	if err := statx(root, &st); err != nil {
		return nil, err
	}
	n := &node{desc: newDescriptor(root), id: rootID, key: keyOf(&st), format: uint32(st.Mode) & unix.S_IFMT, lookups: 1}
	room.open.Add(1)
	return &nodes{
		byID: map[uint64]*node{rootID: n}, byKey: map[key]*node{n.key: n}, next: rootID + 1, room: room,
		devices: map[uint64]uint64{n.key.dev: 0}, mount: n.key.mount,
	}, nil
}

func statx(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT, statMask, st)
}

// budget bounds the descriptors that all nodes of a process have open. Each share makes room among its own.
type budget struct {
	open atomic.Int64
	most int64
}

// newBudget is half of the descriptors that the process may have: the others are for open files.
func newBudget() (*budget, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	return &budget{most: int64(min(limit.Cur, math.MaxInt32) / 2)}, nil
}

// use returns a node that the caller releases; nil for a number that the guest has not been told or has forgotten, and
// for a file that is not found again.
func (t *nodes) use(id uint64) *used { return t.useBelow(id, maxDepth) }

// maxDepth bounds how many directories are opened again on the way to a file: what a path can have.
const maxDepth = 2048

func (t *nodes) useBelow(id uint64, depth int) *used {
	t.mu.Lock()
	n := t.byID[id]
	if n == nil {
		t.mu.Unlock()
		return nil
	}
	if n.desc != nil {
		defer t.mu.Unlock()
		n.desc.refs.Add(1)
		return &used{n.desc, id, n.format}
	}
	dir, name := n.dir, n.name
	t.mu.Unlock()
	if depth == 0 {
		return nil
	}
	parent := t.useBelow(dir, depth-1)
	if parent == nil {
		return nil
	}
	defer parent.release()
	fd, st, err := lookup(parent.fd, name)
	if err != nil {
		return nil
	}
	if keyOf(&st) != n.key {
		unix.Close(fd)
		return nil
	}
	return t.reopened(n, fd)
}

// reopened gives a node a descriptor again, unless it has got one in the meantime.
func (t *nodes) reopened(n *node, fd int) *used {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keepsNot(n.key) {
		return &used{newDescriptor(fd), n.id, n.format}
	}
	if n.desc == nil && t.byID[n.id] == n {
		t.makeRoomLocked()
		n.desc = newDescriptor(fd)
		t.room.open.Add(1)
	} else {
		unix.Close(fd)
	}
	if n.desc == nil {
		return nil
	}
	n.desc.refs.Add(1)
	return &used{n.desc, n.id, n.format}
}

// makeRoomLocked closes descriptors of files that nobody works with, in no order.
func (t *nodes) makeRoomLocked() {
	if t.room.open.Load() < t.room.most {
		return
	}
	for _, n := range t.byID {
		if n.desc == nil || n.id == rootID || n.desc.refs.Load() > 1 {
			continue
		}
		t.closeLocked(n)
		if t.room.open.Load() <= t.room.most*3/4 {
			return
		}
	}
}

// lookup opens a name in a directory, without following it.
func lookup(dir int, name string) (fd int, st unix.Statx_t, err error) {
	fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, st, err
	}
	if err := statx(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// add takes over the descriptor of a file and counts a lookup. The node is the guest's until it forgets it.
func (t *nodes) add(fd int, st *unix.Statx_t, dir uint64, name string) uint64 {
	k := keyOf(st)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[k]
	if n == nil {
		n = &node{id: t.next, key: k, format: uint32(st.Mode) & unix.S_IFMT}
		t.next++
		t.byID[n.id], t.byKey[k] = n, n
	}
	n.lookups++
	if n.id != rootID {
		n.dir, n.name = dir, name
	}
	if n.desc != nil || t.keepsNot(k) {
		unix.Close(fd)
		return n.id
	}
	t.makeRoomLocked()
	n.desc = newDescriptor(fd)
	t.room.open.Add(1)
	return n.id
}

// keepsNot says whether a file is opened by its name whenever it is used.
func (t *nodes) keepsNot(k key) bool { return t.passing && k.mount != t.mount }

// known is the number of a file; 0 where the guest has none for it.
func (t *nodes) known(k key) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[k]; n != nil {
		return n.id
	}
	return 0
}

// number is one that no file has.
func (t *nodes) number() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	return t.next - 1
}

// retain counts a lookup of a file that is known already. It returns nil for one that is not, or is not found again.
func (t *nodes) retain(id uint64) *used {
	n := t.use(id)
	if n == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[id] == nil {
		n.release()
		return nil
	}
	t.byID[id].lookups++
	return n
}

// named is a file that the guest knows, and where it was looked up last.
type named struct {
	id     uint64
	place  place
	format uint32
}

// all lists the files that the guest knows, beside the root.
func (t *nodes) all() map[uint64]named {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make(map[uint64]named, len(t.byID))
	for id, n := range t.byID {
		if id != rootID {
			list[id] = named{id, place{n.dir, n.name}, n.format}
		}
	}
	return list
}

// moved notes that a file has a new name.
func (t *nodes) moved(dir *used, name string) {
	fd, st, err := lookup(dir.fd, name)
	if err != nil {
		return // it has gone again
	}
	unix.Close(fd)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[keyOf(&st)]; n != nil && n.id != rootID {
		n.dir, n.name = dir.id, name
	}
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
	t.closeLocked(n)
}

func (t *nodes) closeLocked(n *node) {
	if n.desc != nil {
		n.desc.release()
		n.desc = nil
		t.room.open.Add(-1)
	}
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
		t.closeLocked(n)
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
