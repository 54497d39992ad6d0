package share

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// slow is a file system in which looking a name up ends when its channel is closed.
type slow struct {
	fuse.RawFileSystem
	hang, entered chan struct{}
}

func (h slow) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, _ *fuse.EntryOut) fuse.Status {
	if name == "hang" {
		h.entered <- struct{}{}
		<-h.hang
	}
	return fuse.ENOENT
}

// TestHungReader: requests are read while as many of them hang as there are, each in the worker that read it.
func TestHungReader(t *testing.T) {
	fs := slow{fuse.NewDefaultRawFileSystem(), make(chan struct{}), make(chan struct{})}
	conn, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(theirs, fs, MaxWrite, nil)
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	exchange(t, conn, initRequest())
	const hung = 3
	for i := range uint64(hung) {
		if _, err := conn.Write(request(opLookup, 100+i, rootID, []byte("hang\x00"))); err != nil {
			t.Fatal(err)
		}
		<-fs.entered
		for j := range uint64(20) { // some of them after the watch has gone to sleep
			exchange(t, conn, request(opLookup, 1000+i*100+j, rootID, []byte("no\x00")))
			if j == 10 {
				time.Sleep(4 * overdue)
			}
		}
	}
	close(fs.hang)
	for range hung {
		answer := make([]byte, replySize)
		if _, err := io.ReadFull(conn, answer); err != nil {
			t.Fatal(err)
		}
		if unique := binary.NativeEndian.Uint64(answer[8:]); unique < 100 || unique >= 100+hung {
			t.Errorf("an answer to %d", unique)
		}
	}
}
