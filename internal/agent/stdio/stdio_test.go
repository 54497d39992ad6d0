package stdio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/stdio"
)

// pair is a stream with its two ends, each of which can be half-closed.
func pair(t *testing.T) (host, guest *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return ends[0], ends[1]
}

// start runs a shell script on the set.
func start(t *testing.T, s *Set, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	child := s.Child()
	if child[stdio.Stdin] != nil {
		cmd.Stdin = child[stdio.Stdin]
	}
	cmd.Stdout, cmd.Stderr = child[stdio.Stdout], child[stdio.Stderr]
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.CloseChild()
	return cmd
}

func newSet(t *testing.T, stdin bool) *Set {
	t.Helper()
	s, err := NewPipes(stdin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func serve(t *testing.T, s *Set, fd int, wg *sync.WaitGroup) *net.UnixConn {
	t.Helper()
	host, guest := pair(t)
	if err := s.Claim(fd); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { s.Serve(fd, guest) })
	return host
}

func TestPipes(t *testing.T) {
	s := newSet(t, true)
	var wg sync.WaitGroup
	in, out, stderr := serve(t, s, stdio.Stdin, &wg), serve(t, s, stdio.Stdout, &wg), serve(t, s, stdio.Stderr, &wg)
	cmd := start(t, s, "echo problem >&2; cat; echo end")
	big := bytes.Repeat([]byte("0123456789"), 100_000)
	wg.Go(func() {
		if _, err := in.Write(big); err != nil {
			t.Error(err)
		}
		if err := in.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(out)
	if want := append(big, "end\n"...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("stdout: %d bytes, %v; want %d", len(got), err, len(want))
	}
	if got, err := io.ReadAll(stderr); err != nil || string(got) != "problem\n" {
		t.Errorf("stderr: %q, %v", got, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestOutputWaits: what a process wrote before anybody listened, and before it ended, is not lost.
func TestOutputWaits(t *testing.T) {
	s := newSet(t, false)
	if err := start(t, s, "echo early").Wait(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	if got, err := io.ReadAll(serve(t, s, stdio.Stdout, &wg)); err != nil || string(got) != "early\n" {
		t.Errorf("got %q, %v", got, err)
	}
	wg.Wait()
}

// TestHostGone: a process whose output nobody reads any more goes on to its end.
func TestHostGone(t *testing.T) {
	s := newSet(t, false)
	var wg sync.WaitGroup
	out := serve(t, s, stdio.Stdout, &wg)
	cmd := start(t, s, "head -c 10000000 /dev/zero; exit 7")
	if _, err := io.ReadFull(out, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	out.Close()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("got %v", err)
	}
	wg.Wait()
}

// TestProcessDoesNotRead: input for a process that has ended breaks the stream instead of blocking the host.
func TestProcessDoesNotRead(t *testing.T) {
	s := newSet(t, true)
	var wg sync.WaitGroup
	in := serve(t, s, stdio.Stdin, &wg)
	if err := start(t, s, "exit 0").Wait(); err != nil {
		t.Fatal(err)
	}
	s.CloseInput()
	if _, err := in.Write(make([]byte, 10_000_000)); err == nil {
		t.Error("10 MB were taken by nobody")
	}
	wg.Wait()
}

func TestTerminal(t *testing.T) {
	s := NewTerminal(true)
	defer s.Close()
	var wg sync.WaitGroup
	in, out := serve(t, s, stdio.Stdin, &wg), serve(t, s, stdio.Stdout, &wg)
	if err := s.Claim(stdio.Stderr); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stderr of a terminal: %v", err)
	}
	// A size that comes before the terminal is the terminal's first.
	if err := s.Resize(81, 25); err != nil {
		t.Fatal(err)
	}
	master, slave := openTerminal(t)
	s.SetConsole(master)
	cmd := exec.Command("/bin/sh", "-c", "stty size; read x; echo got $x")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	if _, err := io.WriteString(in, "word\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(out)
	if err != nil || !bytes.Contains(got, []byte("25 81")) || !bytes.Contains(got, []byte("got word")) {
		t.Errorf("got %q, %v", got, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	in.Close()
	wg.Wait()
}

func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("SKIPPED, not tested: no pseudo terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, err := terminalPeer(fd)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "master"), os.NewFile(uintptr(peer), "slave")
}

func TestClaim(t *testing.T) {
	s := newSet(t, false)
	if err := s.Claim(stdio.Stdin); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stdin that there is not: %v", err)
	}
	if err := s.Claim(3); !errdefs.IsInvalidArgument(err) {
		t.Errorf("descriptor 3: %v", err)
	}
	if err := s.Claim(stdio.Stdout); err != nil {
		t.Error(err)
	}
	if err := s.Claim(stdio.Stdout); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second stream: %v", err)
	}
	s.Close()
	if err := s.Claim(stdio.Stderr); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after the end: %v", err)
	}
}

// TestCloseEndsStreams: deletion ends streams that wait for output, or for a terminal that never came.
func TestCloseEndsStreams(t *testing.T) {
	pipes, terminal := newSet(t, true), NewTerminal(true)
	var wg sync.WaitGroup
	streams := []*net.UnixConn{
		serve(t, pipes, stdio.Stdout, &wg), serve(t, pipes, stdio.Stderr, &wg), serve(t, terminal, stdio.Stdout, &wg),
	}
	pipes.Close()
	terminal.Close()
	for _, c := range streams {
		if got, err := io.ReadAll(c); err != nil || len(got) != 0 {
			t.Errorf("got %q, %v", got, err)
		}
	}
	wg.Wait()
}

// terminalPeer opens the other side of a terminal, blocking as a process expects it.
func terminalPeer(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}
