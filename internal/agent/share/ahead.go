package share

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	opGetAttr = 3
	// getAttr is all of a request for attributes; ofHandle is set in its flags when they are those of an open file.
	getAttr  = requestHeader + 16
	ofHandle = 1
	// attrOut is what answers it, after the header.
	attrOut = agentv1.ShareAttributesSize - minMessage - 2*8
	// maxAhead is how many directories one request changes: renaming changes two.
	maxAhead = 2
	// longest is what no attributes are believed beyond.
	longest = time.Hour
)

// ahead has the attributes of directories that came with the answer to what changed them, and answers the kernel's next question for
// them: it forgets a directory's attributes with each change, and needs them to permit the next one. Each answers one question.
//
// They are right as long as nothing else may have changed the directory through this mount. So they are believed only if from when
// the request was sent until its answer no other one was under way that may change a directory, and until the next such request.
type ahead struct {
	mu sync.Mutex
	// changing are the requests under way that may change a directory.
	changing map[uint64]struct{}
	// alone is the one of them that never had another one beside it; 0: there is none.
	alone uint64
	known []attributes
}

// attributes are FUSE's attr_out for a node.
type attributes struct {
	node  uint64
	until time.Time
	out   [attrOut]byte
}

// keepsDirectories tells an operation that changes no attributes of a directory. Reading one does, as a file system may note when.
func keepsDirectories(op uint32) bool {
	switch op {
	case 1, 2, opGetAttr, 5, 14, opRead, opWrite, 17, opRelease, 20: // LOOKUP, FORGET, READLINK, OPEN, STATFS, FSYNC
		return true
	case 22, 23, 25, 27, opReleaseDir, 30, 34, 36, opBatchForget: // GETXATTR, LISTXATTR, FLUSH, OPENDIR, FSYNCDIR, ACCESS, INTERRUPT
		return true
	case 43, 46, 47: // FALLOCATE, LSEEK, COPY_FILE_RANGE
		return true
	}
	return false
}

// request notes what the kernel asks, and returns the answer if it is known.
func (a *ahead) request(frame []byte, now func() time.Time) (answer []byte) {
	if len(frame) < requestHeader {
		return nil
	}
	op, unique := binary.NativeEndian.Uint32(frame[4:]), binary.NativeEndian.Uint64(frame[8:])
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case op == opGetAttr:
		return a.answerLocked(frame, now)
	case keepsDirectories(op):
		return nil
	}
	a.known, a.alone = nil, 0
	if len(a.changing) == 0 {
		a.alone = unique
	}
	a.changing[unique] = struct{}{}
	return nil
}

func (a *ahead) answerLocked(frame []byte, now func() time.Time) []byte {
	if len(frame) < getAttr || binary.NativeEndian.Uint32(frame[requestHeader:])&ofHandle != 0 {
		return nil
	}
	node := binary.NativeEndian.Uint64(frame[16:])
	for i, k := range a.known {
		if k.node != node {
			continue
		}
		a.known = append(a.known[:i], a.known[i+1:]...)
		left := k.until.Sub(now())
		if left <= 0 {
			return nil
		}
		binary.NativeEndian.PutUint64(k.out[:], uint64(left/time.Second))
		binary.NativeEndian.PutUint32(k.out[8:], uint32(left%time.Second))
		return append(done(frame, attrOut), k.out[:]...)
	}
	return nil
}

// done is the answer to a request that has succeeded, before a body of so many bytes.
func done(request []byte, body int) []byte {
	b := make([]byte, minMessage, minMessage+body)
	binary.NativeEndian.PutUint32(b, uint32(minMessage+body))
	copy(b[8:], request[8:16])
	return b
}

// isAttributes tells a message that is for ahead and not for the kernel.
func isAttributes(frame []byte) bool {
	return binary.NativeEndian.Uint32(frame[4:]) == agentv1.ShareAttributes && binary.NativeEndian.Uint64(frame[8:]) == 0
}

// take keeps what a request has made of a directory's attributes, whose answer comes next.
func (a *ahead) take(frame []byte, now time.Time) error {
	if len(frame) != agentv1.ShareAttributesSize {
		return fmt.Errorf("attributes of a directory in %d bytes: they have %d", len(frame), agentv1.ShareAttributesSize)
	}
	unique, body := binary.NativeEndian.Uint64(frame[minMessage:]), frame[minMessage+8:]
	k := attributes{node: binary.NativeEndian.Uint64(body)}
	copy(k.out[:], body[8:])
	valid := longest
	if s := binary.NativeEndian.Uint64(k.out[:]); s < uint64(longest/time.Second) {
		valid = time.Duration(s)*time.Second + time.Duration(min(binary.NativeEndian.Uint32(k.out[8:]), 999_999_999))
	}
	k.until = now.Add(valid)
	a.mu.Lock()
	defer a.mu.Unlock()
	if unique != 0 && unique == a.alone && len(a.known) < maxAhead {
		a.known = append(a.known, k)
	}
	return nil
}

// answered notes that a request is no longer under way.
func (a *ahead) answered(frame []byte) {
	unique := binary.NativeEndian.Uint64(frame[8:])
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.changing, unique)
	if a.alone == unique {
		a.alone = 0
	}
}
