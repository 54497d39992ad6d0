package share

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// library handles requests. With ahead, those that change directories are answered with what the guest would ask for next.
type library struct {
	*fuse.ProtocolServer
	ahead bool
}

const (
	opGetAttr = 3
	// attrOut is FUSE's answer to GETATTR, after the header.
	attrOut = agentv1.ShareAttributesSize - replySize - 2*8
)

// changes are the directories whose entries a request changes, if the guest wants to know what becomes of them: the kernel forgets
// a directory's attributes with each change, and needs them for the next.
func (l library) changes(frame []byte) []uint64 {
	if !l.ahead || unanswered(frame) {
		return nil
	}
	dir := binary.NativeEndian.Uint64(frame[16:])
	switch opcode(frame) {
	case 6, 8, 9, 10, 11, 13, 35: // SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, LINK, CREATE
		return []uint64{dir}
	case 12, 45: // RENAME, RENAME2
		if len(frame) < headerSize+8 {
			return nil // which is refused
		}
		if to := binary.NativeEndian.Uint64(frame[headerSize:]); to != dir {
			return []uint64{dir, to}
		}
		return []uint64{dir}
	}
	return nil
}

// handleAhead has a request handled that changes directories, and returns the part of out that has their attributes and the answer.
// That stands last, so that the guest has the others before its kernel asks for them.
func (l library) handleAhead(request [][]byte, dirs []uint64, out []byte) (answer []byte, code fuse.Status) {
	begin := len(dirs) * agentv1.ShareAttributesSize
	n, code := l.HandleRequest(request, [][]byte{out[begin:]})
	end := begin + n
	if n < replySize || !succeeded(out[begin:end]) {
		return out[begin:end], code
	}
	for _, dir := range dirs {
		at := begin - agentv1.ShareAttributesSize
		if l.attributes(binary.NativeEndian.Uint64(request[0][8:]), dir, out[at:begin]) {
			begin = at
		}
	}
	return out[begin:end], code
}

// attributes writes what a request has made of a directory's attributes; false where they are not to be had.
func (l library) attributes(unique, dir uint64, message []byte) bool {
	getAttr := make([]byte, headerSize+16)
	binary.NativeEndian.PutUint32(getAttr, uint32(len(getAttr)))
	binary.NativeEndian.PutUint32(getAttr[4:], opGetAttr)
	binary.NativeEndian.PutUint64(getAttr[16:], dir)
	answer := message[len(message)-replySize-attrOut:]
	n, _ := l.HandleRequest([][]byte{getAttr}, [][]byte{answer})
	if n != len(answer) || !succeeded(answer) {
		return false
	}
	clear(message[:replySize])
	binary.NativeEndian.PutUint32(message, agentv1.ShareAttributesSize)
	binary.NativeEndian.PutUint32(message[4:], agentv1.ShareAttributes)
	binary.NativeEndian.PutUint64(message[replySize:], unique)
	binary.NativeEndian.PutUint64(message[replySize+8:], dir)
	return true
}

// succeeded tells an answer that is no error.
func succeeded(answer []byte) bool { return binary.NativeEndian.Uint32(answer[4:]) == 0 }
