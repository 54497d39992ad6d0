package share_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	guestv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/share"
)

// messages passes what guest and server say to each other, and counts it.
type messages struct {
	mu       sync.Mutex
	requests map[uint32]int // by operation
	answers  int
}

// pass copies messages, whose first four bytes are their length.
func (m *messages) pass(to io.Writer, from io.Reader, count func(head []byte)) {
	buf := make([]byte, guestv1.MaxShareFrame)
	for {
		if _, err := io.ReadFull(from, buf[:16]); err != nil {
			return
		}
		n := binary.NativeEndian.Uint32(buf) &^ guestv1.ShareInMemory
		if _, err := io.ReadFull(from, buf[16:n]); err != nil {
			return
		}
		m.mu.Lock()
		count(buf[:16])
		m.mu.Unlock()
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// between is the end of a stream for a guest, whose messages are counted on their way to the server.
func (m *messages) between(t *testing.T, server *os.File) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(fds[0]), "ours")
	var passing sync.WaitGroup
	passing.Go(func() {
		m.pass(server, ours, func(head []byte) { m.requests[binary.NativeEndian.Uint32(head[4:])]++ })
		_ = unix.Shutdown(int(server.Fd()), unix.SHUT_WR)
	})
	passing.Go(func() {
		m.pass(ours, server, func(head []byte) {
			if binary.NativeEndian.Uint64(head[8:]) != 0 {
				m.answers++
			}
		})
	})
	t.Cleanup(func() {
		passing.Wait()
		ours.Close()
		server.Close()
	})
	return os.NewFile(uintptr(fds[1]), "guest")
}

// since returns what was counted since it was called last.
func (m *messages) since() (requests map[uint32]int, answers int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	requests, answers = m.requests, m.answers
	m.requests, m.answers = map[uint32]int{}, 0
	return requests, answers
}

// files is how many there are of what operate does.
const files = 20

// operate is a process of the guest's, since who passes messages must not wait for what they do.
func operate(step, dir string) int {
	for i := range files {
		name := filepath.Join(dir, fmt.Sprint("file", i))
		var err error
		switch step {
		case "create":
			var f *os.File
			if f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err == nil {
				err = f.Close()
			}
		case "rename":
			err = unix.Rename(name, name+"x") // os.Rename looks first
		case "unlink":
			err = os.Remove(name + "x")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

// TestMessages: what changes a directory costs no question for its attributes, as long as one process does it, and nobody waits for
// more answers than it has calls and names.
func TestMessages(t *testing.T) {
	h := startHost(t)
	s := share.Share{Path: t.TempDir(), Valid: time.Minute, Attributes: true}
	served, err := h.Serve(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	m := &messages{requests: map[uint32]int{}}
	mnt := mountOver(t, s, served, m.between(t, guestEnd(t, served, false)))
	for _, step := range []struct {
		name    string
		answers int // that somebody waits for, for each file
	}{{"create", 2}, {"rename", 2}, {"unlink", 1}} {
		cmd := exec.Command("/proc/self/exe", operateArg, step.name, mnt)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatal(step.name, err)
		}
		requests, answers := m.since()
		t.Logf("%s: of %d files: requests %v, %d answers", step.name, files, requests, answers)
		const getAttr, slack = 3, 8 // the first of a step may find more to be asked
		if requests[getAttr] > slack {
			t.Errorf("%s: %d questions for attributes", step.name, requests[getAttr])
		}
		if most := step.answers*files + slack; answers > most {
			t.Errorf("%s: %d answers, at most %d are needed", step.name, answers, most)
		}
	}
}
