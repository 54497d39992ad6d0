package vmm

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

func TestParseVersion(t *testing.T) {
	tests := []struct{ out, want string }{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c)", "7.2.22"},
		{"QEMU emulator version 10.0.2", "10.0.2"},
		{"Firecracker v7.16.1\n", "7.16.1"},
		{"cloud-hypervisor v53.0", "53.0"},
		{"QEMU emulator version 7.1.0", ""},
		{"QEMU emulator version 6.2", ""},
		{"", ""},
		{"version 99999999999999999999.1", ""},
	}
	p := Program{Driver: "qemu", Major: 7, Minor: 2}
	for _, tt := range tests {
		got, err := p.parse("qemu", tt.out)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: %q, %v, want %q", tt.out, got, err, tt.want)
		}
		if err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%q: %v, want FailedPrecondition", tt.out, err)
		}
	}
}

func TestTail(t *testing.T) {
	tail := NewTail(20, "")
	io.WriteString(tail, "one\ntwo\n")
	if got := tail.Lines(10); got != "one | two" {
		t.Errorf("short: %q", got)
	}
	io.WriteString(tail, "\x1b[2Jthree\r\n\n"+strings.Repeat("x", 8)+"\xff\nlast")
	if got := tail.Lines(2); got != "xxxxxxxx? | last" {
		t.Errorf("cut: %q", got)
	}
	if len(tail.buf) > tail.max {
		t.Errorf("%d bytes are kept", len(tail.buf))
	}
}

// TestWatchOfWhatHasEnded: why a VM ended is asked when Watch may not have returned.
func TestWatchOfWhatHasEnded(t *testing.T) {
	path, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(Command{Name: "true", Path: path})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	said := make(chan struct{})
	m := Watch(p, io.NopCloser(strings.NewReader("last words")), nil, nil, func(m *Machine) error {
		defer close(said)
		if !m.Success() || m.Console.Lines(1) != "last words" {
			t.Errorf("it is not the machine: %s, %q", m.End(), m.Console.Lines(1))
		}
		return hypervisor.ErrPoweredOff
	})
	<-said
	<-m.Done()
	if m.Err() != hypervisor.ErrPoweredOff {
		t.Errorf("it ended with %v", m.Err())
	}
}

// TestWhyKilled: that a VMM was killed is told where its driver does not know why.
func TestWhyKilled(t *testing.T) {
	path, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	reset := errors.New("the guest reset itself")
	for _, known := range []error{nil, hypervisor.ErrPoweredOff, reset} {
		p, err := Start(Command{Name: "sleep", Path: path, Args: []string{"1000"}})
		if err != nil {
			t.Fatal(err)
		}
		m := Watch(p, io.NopCloser(strings.NewReader("")), nil, nil, func(*Machine) error { return known })
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		<-m.Done()
		want := hypervisor.ErrKilled
		if known == reset {
			want = reset
		}
		if !errors.Is(m.Err(), want) || errors.Is(m.Err(), hypervisor.ErrPoweredOff) {
			t.Errorf("of %v: %v, want %v", known, m.Err(), want)
		}
	}
}

// parentEnv makes this test binary a parent for TestDiesWithParent.
const parentEnv = "PISTIS_TEST_VMM_PARENT"

// TestDiesWithParent: the VMM does not outlive the process that started it, however that ends, also with
// another identity.
func TestDiesWithParent(t *testing.T) {
	if user := os.Getenv(parentEnv); user != "" {
		playParent(t, user)
		return
	}
	users := []string{"same"}
	if os.Getuid() == 0 {
		users = append(users, "65534", "jailed")
	} else {
		t.Log("SKIPPED for another user's VMM: needs root")
	}
	for _, user := range users {
		t.Run(user, func(t *testing.T) {
			parent := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiesWithParent$")
			parent.Env = append(os.Environ(), parentEnv+"="+user)
			out, err := parent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			var line [64]byte
			n, err := out.Read(line[:])
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
			if err != nil {
				t.Fatal(err)
			}
			vmm, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(vmm)
			parent.Process.Kill()
			parent.Wait()
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(vmm), Events: unix.POLLIN}}, 10_000); n != 1 {
				unix.PidfdSendSignal(vmm, unix.SIGKILL, nil, 0)
				t.Fatalf("the VMM, process %d, outlived its parent: %v", pid, err)
			}
		})
	}
}

func playParent(t *testing.T, name string) {
	var user *hypervisor.User
	if uid, err := strconv.Atoi(name); err == nil {
		user = &hypervisor.User{UID: uint32(uid), GID: uint32(uid)}
	}
	var jail *Jail
	if name == "jailed" {
		user, jail = &hypervisor.User{UID: 65534, GID: 65534}, &Jail{Dir: os.TempDir()}
	}
	p, err := Start(Command{Name: "sleep", Path: "/bin/sleep", Args: []string{"1000"}, User: user, Jail: jail})
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString(strconv.Itoa(p.cmd.Process.Pid) + "\n")
	<-p.done
}

func TestSlots(t *testing.T) {
	v := NewSlots(1)
	if err := v.Claim("a"); err != nil {
		t.Fatal(err)
	}
	if err := v.ClaimAttached("a"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("detach of a disk that is being attached: %v", err)
	}
	v.Settle("a", true)
	if err := v.Claim("a"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice: %v", err)
	}
	if err := v.Claim("b"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v", err)
	}
	if err := v.ClaimAttached("a"); err != nil {
		t.Fatal(err)
	}
	v.Settle("a", false)
	if err := v.ClaimAttached("a"); !errdefs.IsNotFound(err) {
		t.Errorf("detached twice: %v", err)
	}
}
