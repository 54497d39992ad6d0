package share

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The tests here play a hostile guest against the real, confined server: what it gets, and what becomes of its pod's other
// shares.

func startServer(t *testing.T) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a share server makes mounts: it needs root")
	}
	h, err := Start(t.Context(), []string{"/proc/self/exe", "share-server"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// shareWith serves a directory and returns the guest's end after INIT.
func shareWith(t *testing.T, h *Host, dir string) (net.Conn, *Served) {
	t.Helper()
	served, err := h.Serve(t.Context(), Share{Path: dir, Valid: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if code, _ := exchange(t, served.Stream, initRequest()); code != 0 {
		t.Fatalf("INIT: %v", code)
	}
	return served.Stream, served
}

// works shows that a share answers.
func works(t *testing.T, conn net.Conn) {
	t.Helper()
	for range 100 {
		if code, _ := exchange(t, conn, request(3, 7, rootID, make([]byte, 16))); code != 0 {
			t.Fatalf("the other share: %v", code)
		}
	}
}

// TestSwappedLinks: directories and symbolic links change places, by the guest and by the host, while the guest looks up
// what is behind them.
func TestSwappedLinks(t *testing.T) {
	h := startServer(t)
	dir := outside(t)
	var secret unix.Stat_t
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "dir"), 0o755), unix.Stat(filepath.Join(dir, "../secret"), &secret)); err != nil {
		t.Fatal(err)
	}
	reader, _ := shareWith(t, h, dir)
	swapper, _ := shareWith(t, h, dir)
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// RENAME2 with RENAME_EXCHANGE, and the same by the host.
			if code, _ := exchange(t, swapper, request(45, 3, rootID, words(rootID, 0, unix.RENAME_EXCHANGE, 0), []byte("dir\x00up\x00"))); code != 0 {
				t.Errorf("exchange: %v", code)
				return
			}
			_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "dir"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
		}
	})
	defer func() { close(stop); swapping.Wait() }()
	for range 1000 {
		for _, name := range []string{"dir", "up", "link"} {
			code, body := exchange(t, reader, request(opLookup, 2, rootID, []byte(name+"\x00")))
			if code != 0 {
				continue
			}
			node := binary.NativeEndian.Uint64(body)
			if code, _ := exchange(t, reader, request(opLookup, 2, node, []byte("secret\x00"))); code == 0 {
				t.Fatalf("found what is outside, through %s", name)
			}
			if code, body := exchange(t, reader, request(14, 2, node, words(0, 0))); code == 0 {
				t.Fatalf("opened %s, handle %d", name, binary.NativeEndian.Uint64(body))
			}
		}
	}
}

// TestGarbage: whatever a guest sends ends its share at most, and neither the server nor the others.
func TestGarbage(t *testing.T) {
	h := startServer(t)
	good, _ := shareWith(t, h, t.TempDir())
	long := make([]byte, maxFrame)
	binary.NativeEndian.PutUint32(long, maxFrame)
	for name, garbage := range map[string][]byte{
		"zeros": make([]byte, 4096), "ones": []byte(strings.Repeat("\xff", 4096)), "oversized": words(maxFrame+1, 1, 2, 3), "cut short": request(opLookup, 2, rootID, []byte("x"))[:30],
		"largest": long, "a name without end": request(opLookup, 2, rootID, []byte(strings.Repeat("x", 4096))),
		"forgets":   request(opBatchForget, 2, 0, words(^uint32(0), 0), make([]byte, 64)),
		"write":     request(16, 2, rootID, words(1, 0, 0, 0, ^uint32(0), 0, 0, 0, 0, 0), make([]byte, 64)),
		"interrupt": request(opInterrupt, 2, 0, words(1, 2)), "unanswered": bytes.Repeat(request(opLookup, 0, rootID, []byte("none\x00")), 1000),
	} {
		bad, served := shareWith(t, h, t.TempDir())
		bad.SetDeadline(time.Now().Add(time.Minute))
		_, _ = bad.Write(garbage)
		_ = served.Stream.CloseWrite()
		_, _ = io.Copy(io.Discard, bad)
		if err := served.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		works(t, good)
	}
	select {
	case <-h.Done():
		t.Error("the server has ended")
	default:
	}
}

// TestFlood: a guest that asks without end and takes no answers blocks itself, and costs a bounded amount of memory.
func TestFlood(t *testing.T) {
	h := startServer(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, MaxWrite), 0o600); err != nil {
		t.Fatal(err)
	}
	good, _ := shareWith(t, h, t.TempDir())
	flood, served := shareWith(t, h, dir)
	code, body := exchange(t, flood, request(opLookup, 2, rootID, []byte("file\x00")))
	if code != 0 {
		t.Fatal(code)
	}
	node := binary.NativeEndian.Uint64(body)
	code, body = exchange(t, flood, request(14, 3, node, words(0, 0)))
	if code != 0 {
		t.Fatal(code)
	}
	read := request(opRead, 4, node, body[:8], words(0, 0, MaxWrite, 0, 0, 0, 0, 0))
	sent := 0
	for ; sent < 1<<20; sent++ {
		flood.SetWriteDeadline(time.Now().Add(2 * time.Second))
		if _, err := flood.Write(read); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	works(t, good)
	var pages, resident int
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", h.PID()))
	if err == nil {
		_, err = fmt.Sscan(string(b), &pages, &resident)
	}
	if err != nil {
		t.Fatal(err)
	}
	mib := resident * os.Getpagesize() >> 20
	t.Logf("%d requests of %d KiB were taken, the server has %d MiB", sent, MaxWrite>>10, mib)
	if sent == 1<<20 || mib > 64 {
		t.Error("nothing bounds a flood")
	}
	if err := served.Close(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	works(t, good)
}

// hanging is a file system of the host that does not answer lookups.
type hanging struct {
	fuse.RawFileSystem
	asked   chan struct{}
	release chan struct{}
}

func (f hanging) GetAttr(_ <-chan struct{}, _ *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.Attr = fuse.Attr{Ino: 1, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
	return fuse.OK
}

func (f hanging) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status { return fuse.OK }

func (f hanging) Lookup(<-chan struct{}, *fuse.InHeader, string, *fuse.EntryOut) fuse.Status {
	f.asked <- struct{}{}
	<-f.release
	return fuse.ENOENT
}

// TestHungShare: a share whose file system hangs, with more requests in it than the server has workers for, does not hold
// up the pod's others, nor the start of further ones.
func TestHungShare(t *testing.T) {
	h := startServer(t)
	point := filepath.Join(t.TempDir(), "hung")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	const requests = maxWorkers + 16
	fs := hanging{fuse.NewDefaultRawFileSystem(), make(chan struct{}, requests), make(chan struct{})}
	server, err := fuse.NewServer(fs, point, &fuse.MountOptions{DirectMount: true, DirectMountStrict: true, AllowOther: true, MaxBackground: 256})
	if err != nil {
		t.Skipf("SKIPPED: no FUSE here: %v", err)
	}
	go server.Serve()
	defer func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	var released sync.Once
	release := func() { released.Do(func() { close(fs.release) }) }
	defer release()

	good, _ := shareWith(t, h, t.TempDir())
	hung, served := shareWith(t, h, point)
	for i := range requests {
		hung.SetWriteDeadline(time.Now().Add(time.Minute))
		if _, err := hung.Write(request(opLookup, uint64(i+2), rootID, fmt.Appendf(nil, "name%d\x00", i))); err != nil {
			t.Fatal(err)
		}
	}
	for range maxWorkers {
		<-fs.asked
	}
	works(t, good)
	another, _ := shareWith(t, h, t.TempDir())
	works(t, another)
	release()
	for range requests {
		head := make([]byte, replySize)
		hung.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(hung, head); err != nil {
			t.Fatal(err)
		}
	}
	if err := served.Close(); err != nil {
		t.Error(err)
	}
}
