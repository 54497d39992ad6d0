package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

const (
	// port is where testinit listens.
	port = 1024
	// patience bounds every step of a guest, which may run emulated on a loaded machine.
	patience = 2 * time.Minute
	diskSize = 1 << 20
)

// Options of Run.
type Options struct {
	// Config is a VM that boots a guest of BuildGuest; ID, disks, console and hooks are the suite's.
	Config hypervisor.Config
	// Address is where the guest finds the n-th disk of the start; nil is the LUN n.
	Address func(n int, d hypervisor.Disk) hypervisor.DiskAddress
	// Crash is a program that exits at once with an error whatever its arguments are; empty is /bin/false.
	Crash string
	// FixedMemory says that this version of the VMM neither adds memory nor gives any back, nor has some in common with the host,
	// though others do: the words that a refusal has.
	FixedMemory string
	// Work is how long the guest does nothing but file work, which shows errors of an emulated processor.
	Work time.Duration
}

// suite runs the cases against one driver.
type suite struct {
	driver hypervisor.Driver
	Options
}

// Run checks a driver against the contract.
func Run(t *testing.T, driver hypervisor.Driver, o Options) {
	if o.Crash == "" {
		o.Crash = "/bin/false"
	}
	if o.Address == nil {
		o.Address = func(n int, _ hypervisor.Disk) hypervisor.DiskAddress {
			return hypervisor.DiskAddress{Kind: hypervisor.SCSILUN, LUN: uint32(n)}
		}
	}
	s := &suite{driver: driver, Options: o}
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"MissingBinary", s.missingBinary},
		{"MissingKernel", s.missingKernel},
		{"InvalidConfig", s.invalidConfig},
		{"DiesAtOnce", s.diesAtOnce},
		{"StartedRefuses", s.startedRefuses},
		{"StartCanceled", s.startCanceled},
		{"BootAndTalk", s.bootAndTalk},
		{"Disks", s.disks},
		{"SharedDisk", s.sharedDisk},
		{"ResizeMemory", s.resizeMemory},
		{"ResizeVCPUs", s.resizeVCPUs},
		{"CommonMemory", s.commonMemory},
		{"Reclaim", s.reclaim},
		{"Counters", s.counters},
		{"PowerOff", s.powerOff},
		{"Panic", s.panics},
		{"Killed", s.killed},
		{"ShutdownOfDeafGuest", s.shutdownOfDeafGuest},
		{"FileWork", s.fileWork},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := noLeaks(t)
			c.test(t)
			if !t.Failed() {
				check()
			}
		})
	}
}

// config completes the VM of a test.
func (s *suite) config(t *testing.T) hypervisor.Config {
	c := s.Config
	c.ID = "test-" + strings.ToLower(filepath.Base(t.Name()))
	c.RunDir = runDir(t, s.Config.User)
	return c
}

// runDir is a directory of the VMM's user with a short name: sockets lie in it.
func runDir(t *testing.T, user *hypervisor.User) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if user != nil {
		if err := os.Chown(dir, int(user.UID), int(user.GID)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Start starts a VM that testinit is in, in a run directory of its own. The returned stop ends it.
func Start(t *testing.T, driver hypervisor.Driver, c hypervisor.Config) (v hypervisor.VM, stop func()) {
	t.Helper()
	c.RunDir = runDir(t, c.User)
	return start(t, driver, c)
}

// start starts a VM that does not outlive the test's function, which calls the returned stop.
func (s *suite) start(t *testing.T, c hypervisor.Config) (hypervisor.VM, func()) {
	t.Helper()
	return start(t, s.driver, c)
}

func start(t *testing.T, driver hypervisor.Driver, c hypervisor.Config) (hypervisor.VM, func()) {
	t.Helper()
	v, err := driver.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return v, func() {
		if err := v.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		wait(t, v)
		if t.Failed() {
			t.Logf("the VM's end: %v", v.Err())
		}
	}
}

func wait(t *testing.T, v hypervisor.VM) {
	t.Helper()
	select {
	case <-v.Done():
	case <-time.After(patience):
		t.Fatalf("the VM does not end")
	}
	if v.Err() == nil {
		t.Error("no error after the VM's end")
	}
}

// Ask has testinit do something and returns what it answers.
func Ask(t *testing.T, v hypervisor.VM, format string, args ...any) string {
	t.Helper()
	answer, err := tell(t, v, fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
	return answer
}

func tell(t *testing.T, v hypervisor.VM, line string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := v.Dial(ctx, port)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	answer, ok := strings.CutPrefix(strings.TrimSpace(string(got)), "ok")
	if !ok {
		return "", fmt.Errorf("the guest answered %q", got)
	}
	return strings.TrimSpace(answer), nil
}

// image makes a disk that begins with a text. Its files end with the test.
func image(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "image"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(diskSize), writeAt(f, text)); err != nil {
		t.Fatal(err)
	}
	return f
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func (s *suite) missingBinary(t *testing.T) {
	c := s.config(t)
	c.Binary = filepath.Join(t.TempDir(), "no-such-vmm")
	if _, err := s.driver.Start(t.Context(), c); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "install") {
		t.Errorf("start: %v, want NotFound that says what to install", err)
	}
	if _, err := s.driver.Version(t.Context(), c.Binary); !errdefs.IsNotFound(err) {
		t.Errorf("version: %v, want NotFound", err)
	}
	if version, err := s.driver.Version(t.Context(), s.Config.Binary); err != nil || version == "" {
		t.Errorf("version %q, %v", version, err)
	}
}

func (s *suite) missingKernel(t *testing.T) {
	c := s.config(t)
	c.Kernel = filepath.Join(t.TempDir(), "no-such-kernel")
	if _, err := s.driver.Start(t.Context(), c); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "kernel") {
		t.Errorf("start: %v, want NotFound that names the kernel", err)
	}
}

func (s *suite) invalidConfig(t *testing.T) {
	f := image(t, "")
	defer f.Close()
	for what, change := range map[string]func(*hypervisor.Config){
		"no processors":   func(c *hypervisor.Config) { c.VCPUs = 0 },
		"little memory":   func(c *hypervisor.Config) { c.Memory = s.driver.Capabilities().MinMemory - 1 },
		"disk id":         func(c *hypervisor.Config) { c.Disks = []hypervisor.Disk{{ID: "a,b", File: f}} },
		"disk id twice":   func(c *hypervisor.Config) { c.Disks = []hypervisor.Disk{{ID: "a", File: f}, {ID: "a", File: f}} },
		"disk of no file": func(c *hypervisor.Config) { c.Disks = []hypervisor.Disk{{ID: "a"}} },
	} {
		c := s.config(t)
		change(&c)
		if _, err := s.driver.Start(t.Context(), c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want InvalidArgument", what, err)
		}
	}
}

func (s *suite) diesAtOnce(t *testing.T) {
	c := s.config(t)
	c.Binary = s.Crash
	if _, err := s.driver.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "status 1") {
		t.Errorf("start of a VMM that dies: %v, want its exit status", err)
	}
}

func (s *suite) startedRefuses(t *testing.T) {
	c := s.config(t)
	refused := errors.New("no room in the cgroup")
	var pid int
	c.Started = func(p int) error {
		pid = p
		return refused
	}
	if _, err := s.driver.Start(t.Context(), c); !errors.Is(err, refused) {
		t.Errorf("start: %v, want what Started said", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d after a refused start: %v", pid, err)
	}
}

func (s *suite) startCanceled(t *testing.T) {
	c := s.config(t)
	ctx, cancel := context.WithCancel(t.Context())
	c.Started = func(int) error {
		cancel()
		return nil
	}
	if _, err := s.driver.Start(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v, want Canceled", err)
	}
}

// lockedBuffer is a console.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (s *suite) bootAndTalk(t *testing.T) {
	c := s.config(t)
	console := &lockedBuffer{}
	c.Console = console
	var started []int
	c.Started = func(pid int) error {
		started = append(started, pid)
		if console.String() != "" {
			t.Error("the guest ran before Started was called")
		}
		return nil
	}
	v, stop := s.start(t, c)
	defer stop()
	if len(started) != 1 || started[0] != v.PID() {
		t.Errorf("Started was called with %v, the VMM is %d", started, v.PID())
	}
	if v.Err() != nil {
		t.Errorf("error while running: %v", v.Err())
	}
	if got := Ask(t, v, "version"); !strings.HasPrefix(got, "Linux version") {
		t.Errorf("the guest's version is %q", got)
	}
	if !strings.Contains(console.String(), "testinit: up") {
		t.Errorf("console: %q", console.String())
	}
	s.halfClose(t, v)
	s.direct(t, v)
	s.manyStreams(t, v)
	s.refusedPort(t, v)
	s.pause(t, v)
}

func (s *suite) pause(t *testing.T, v hypervisor.VM) {
	p, ok := v.(hypervisor.Pauser)
	if !ok {
		return
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if conn, _ = v.Dial(ctx, port); conn != nil {
		conn.Close()
		t.Error("a paused guest accepts a stream")
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	Ask(t, v, "version")
}

func (s *suite) powerOff(t *testing.T) {
	v, stop := s.start(t, s.config(t))
	defer stop()
	tell(t, v, "poweroff") // the answer is lost with the guest
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := v.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	wait(t, v)
	if !errors.Is(v.Err(), hypervisor.ErrPoweredOff) {
		t.Errorf("after powering off: %v", v.Err())
	}
	if _, err := v.Dial(t.Context(), port); !errdefs.IsUnavailable(err) {
		t.Errorf("dial after the end: %v, want Unavailable", err)
	}
	if plugger, ok := v.(hypervisor.DiskPlugger); ok {
		f := image(t, "")
		defer f.Close()
		if _, err := plugger.AttachDisk(t.Context(), hypervisor.Disk{ID: "late", File: f}); !errdefs.IsUnavailable(err) {
			t.Errorf("attach after the end: %v, want Unavailable", err)
		}
	}
	if err := v.Shutdown(t.Context()); err != nil {
		t.Errorf("second shutdown: %v", err)
	}
}

func (s *suite) panics(t *testing.T) {
	v, stop := s.start(t, s.config(t))
	defer stop()
	tell(t, v, "panic")
	wait(t, v)
	if err := v.Err(); errors.Is(err, hypervisor.ErrPoweredOff) || !strings.Contains(err.Error(), "panic") {
		t.Errorf("after a kernel panic: %v, want the console's last lines", err)
	}
}

func (s *suite) killed(t *testing.T) {
	v, stop := s.start(t, s.config(t))
	defer stop()
	Ask(t, v, "version")
	conn, err := v.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := syscall.Kill(v.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("a stream of a VM that was killed ends like one that was closed")
	}
	wait(t, v)
	if err := v.Err(); !strings.Contains(err.Error(), "signal 9") || !strings.Contains(err.Error(), "testinit: up") {
		t.Errorf("after SIGKILL: %v, want the signal and the console's last lines", err)
	}
	if err := v.Kill(); err != nil {
		t.Errorf("kill of what has ended: %v", err)
	}
}

func (s *suite) shutdownOfDeafGuest(t *testing.T) {
	c := s.config(t)
	c.Params = append(c.Params[:len(c.Params):len(c.Params)], "test.silent")
	v, stop := s.start(t, c)
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := v.Dial(ctx, port); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial of a guest that never answers: %v", err)
	}
	if err := v.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	wait(t, v)
	if errors.Is(v.Err(), hypervisor.ErrPoweredOff) {
		t.Errorf("a guest that was made to go: %v", v.Err())
	}
}

func (s *suite) fileWork(t *testing.T) {
	if s.Work == 0 {
		t.Skip("SKIPPED: no time for file work was given")
	}
	c := s.config(t)
	c.VCPUs = 2
	c.Memory = max(c.Memory, 512<<20)
	v, stop := s.start(t, c)
	defer stop()
	t.Logf("%s in %v", Ask(t, v, "work %d", int(s.Work.Seconds())), s.Work)
}
