// Package ahead answers FUSE requests that change directories together with what the guest's kernel would ask for next: it forgets
// a directory's attributes with each change, and needs them to permit the next one.
//
// It keeps nothing. Requests were screened by its caller; the package imports nothing of ours but the contract with the guest.
package ahead

import (
	"encoding/binary"
	"io"
	"log"

	"github.com/hanwen/go-fuse/v2/fuse"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	headerSize = 40
	replySize  = 16
	opGetAttr  = 3
	// attrOut is FUSE's answer to GETATTR, after the header.
	attrOut = agentv1.ShareAttributesSize - replySize - 2*8
)

// Server handles requests. With Tells it says attributes ahead.
type Server struct {
	*fuse.ProtocolServer
	Tells bool
}

// NewServer is for a guest whose messages have so much data.
func NewServer(fs fuse.RawFileSystem, maxWrite int) Server {
	return Server{ProtocolServer: fuse.NewProtocolServer(fs, &fuse.MountOptions{
		MaxWrite: maxWrite, MaxBackground: 32, Logger: log.New(io.Discard, "", 0), // the guest writes the messages
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2,
	})}
}

// Handle has a request handled, and returns the part of out that has the answer. The attributes of
// directories that it has changed stand before it, so that the guest has them before its kernel asks. To a malformed
// request there is none, and code is not OK.
func (s Server) Handle(request, out []byte) (answer []byte, code fuse.Status) {
	dirs := s.changes(request)
	begin := len(dirs) * agentv1.ShareAttributesSize
	n, code := s.HandleRequest([][]byte{request}, [][]byte{out[begin:]})
	end := begin + n
	if n < replySize || !succeeded(out[begin:end]) {
		return out[begin:end], code
	}
	for _, dir := range dirs {
		at := begin - agentv1.ShareAttributesSize
		if s.attributes(binary.NativeEndian.Uint64(request[8:]), dir, out[at:begin]) {
			begin = at
		}
	}
	return out[begin:end], code
}

// changes are the directories whose entries a request changes that is answered, if the guest wants to know what becomes of them.
func (s Server) changes(frame []byte) []uint64 {
	if !s.Tells || binary.NativeEndian.Uint64(frame[8:]) == 0 {
		return nil
	}
	dir := binary.NativeEndian.Uint64(frame[16:])
	switch binary.NativeEndian.Uint32(frame[4:]) {
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

// attributes writes what a request has made of a directory's attributes; false where they are not to be had.
func (s Server) attributes(unique, dir uint64, message []byte) bool {
	getAttr := make([]byte, headerSize+16)
	binary.NativeEndian.PutUint32(getAttr, uint32(len(getAttr)))
	binary.NativeEndian.PutUint32(getAttr[4:], opGetAttr)
	binary.NativeEndian.PutUint64(getAttr[16:], dir)
	answer := message[len(message)-replySize-attrOut:]
	n, _ := s.HandleRequest([][]byte{getAttr}, [][]byte{answer})
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
