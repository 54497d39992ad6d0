package share

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	requestHeader = 40
	// opNotifyReply is FUSE's number of the request that answers a notice.
	opNotifyReply = 41
)

// repeater repeats on a mount what the host changed in the shared directory: this guest's kernel tells those who watch
// a directory of what is done through its own file systems, and of nothing else. The server knows the requests that come
// from it by their pid.
type repeater struct {
	path    string
	changes chan *agentv1.ShareChange // one at a time: the server waits for the answer
	thread  atomic.Uint32             // which makes the requests; 0: none
	// working is held while the mount is in use; over: there is nothing mounted any more.
	working sync.Mutex
	over    bool
}

// isChange tells a message that is for the repeater and not for the kernel.
func isChange(frame []byte) bool {
	return binary.NativeEndian.Uint32(frame[4:]) == agentv1.ShareChanged && binary.NativeEndian.Uint64(frame[8:]) == 0
}

// take hands a change to run.
func (r *repeater) take(frame []byte) error {
	c := &agentv1.ShareChange{}
	if err := proto.Unmarshal(frame[minMessage:], c); err != nil {
		return fmt.Errorf("change of a share: %w", err)
	}
	select {
	case r.changes <- c:
		return nil
	default:
		return errors.New("change of a share: the one before is not done")
	}
}

// mark shows the server that a request is the repeater's.
func (r *repeater) mark(request []byte) {
	thread := r.thread.Load()
	if thread == 0 || len(request) < requestHeader {
		return
	}
	if pid := request[32:36]; binary.NativeEndian.Uint32(pid) == thread {
		binary.NativeEndian.PutUint32(pid, agentv1.ShareRepeater)
	}
}

// answer is the request that says that a change was repeated.
func answer() []byte {
	b := make([]byte, requestHeader)
	binary.NativeEndian.PutUint32(b, requestHeader)
	binary.NativeEndian.PutUint32(b[4:], opNotifyReply)
	return b
}

// run repeats changes until there are no more, and says after each that it is done.
func (r *repeater) run(done func() error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for c := range r.changes {
		r.working.Lock()
		if !r.over {
			r.thread.Store(uint32(unix.Gettid()))
			r.repeat(c)
			r.thread.Store(0)
		}
		r.working.Unlock()
		if done() != nil {
			return // the stream has ended, and with it all that could be told
		}
	}
}

// repeat does a change. What fails here has changed again on the host, which says so next.
func (r *repeater) repeat(c *agentv1.ShareChange) {
	path, ok := r.inside(c.Path)
	if !ok {
		return
	}
	switch c.Kind {
	case agentv1.ShareChange_MAKE:
		switch c.Mode {
		case unix.S_IFDIR:
			_ = unix.Mkdir(path, 0o700)
		case unix.S_IFLNK:
			_ = unix.Symlink("?", path) // where it leads the host says when it is asked
		case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
			_ = unix.Mknod(path, c.Mode|0o600, 0)
		}
	case agentv1.ShareChange_RENAME:
		if to, ok := r.inside(c.To); ok {
			_ = unix.Rename(path, to)
		}
	case agentv1.ShareChange_REMOVE:
		if c.Mode == unix.S_IFDIR {
			_ = unix.Rmdir(path)
		} else {
			_ = unix.Unlink(path)
		}
	}
}

// inside is a path below the mount.
func (r *repeater) inside(path []byte) (string, bool) {
	name := string(path)
	return r.path + "/" + name, filepath.IsLocal(name) && name != "." && !strings.ContainsRune(name, 0)
}
