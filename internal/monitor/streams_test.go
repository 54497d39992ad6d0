package monitor_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/task"
)

// lines is output that a test waits for, line by line.
type lines struct {
	*io.PipeWriter
	scanner *bufio.Scanner
}

func newLines() *lines {
	r, w := io.Pipe()
	return &lines{w, bufio.NewScanner(r)}
}

// expect wants the next line.
func (l *lines) expect(t *testing.T, want string) {
	t.Helper()
	if !l.scanner.Scan() {
		t.Fatalf("output ended instead of %q: %v", want, l.scanner.Err())
	}
	if got := strings.TrimSuffix(l.scanner.Text(), "\r"); got != want {
		t.Fatalf("output %q, want %q", got, want)
	}
}

// await wants a line, after whichever others.
func (l *lines) await(t *testing.T, want string) {
	t.Helper()
	for l.scanner.Scan() {
		if strings.TrimSuffix(l.scanner.Text(), "\r") == want {
			return
		}
	}
	t.Fatalf("output ended without %q: %v", want, l.scanner.Err())
}

func withStdin(once bool) change {
	return func(_ *specs.Spec, r *monitor.CreateRequest) { r.Stdin, r.StdinOnce = true, once }
}

// TestStdin attaches twice: input stays open in between, and ends with the first client where that is asked for.
func TestStdin(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.create("c1", []string{"/prog", "cat"}, withStdin(false))
		for i, text := range []string{"first", "second"} {
			out := newLines()
			in, write := io.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			attached := make(chan error, 1)
			go func() { attached <- p.Attach(ctx, c1, task.Stdio{Stdin: in, Stdout: out}) }()
			if i == 0 { // a client may be there before the container is
				if _, err := p.Start(t.Context(), c1); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Fprintln(write, text)
			out.expect(t, text)
			cancel()
			write.Close()
			if err := <-attached; err != context.Canceled && !strings.Contains(fmt.Sprint(err), "canceled") {
				t.Errorf("attach = %v", err)
			}
		}
		p.kill("c1")
		p.end("c1")

		req := p.run("c2", []string{"/prog", "cat"}, withStdin(true))
		var out bytes.Buffer
		err := p.Attach(t.Context(), task.ID{Container: "c2"}, task.Stdio{Stdin: strings.NewReader("only\n"), Stdout: &out})
		if err != nil || out.String() != "only\nend of input\n" {
			t.Errorf("attach = %q, %v", out.String(), err)
		}
		if exit := p.end("c2"); exit.Code != 0 {
			t.Errorf("exit = %+v", exit)
		}
		if got := records(t, req.LogPath); len(got) != 2 {
			t.Errorf("log = %q", got)
		}
		p.run("c3", []string{"/prog", "pause"})
		id := task.ID{Container: "c3"}
		if err := p.Attach(t.Context(), id, task.Stdio{Stdin: strings.NewReader("x")}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("attach with stdin that there is not = %v", err)
		}
		if err := p.Resize(t.Context(), id, 1, 1); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("resize without a terminal = %v", err)
		}
		p.kill("c3")
		p.end("c3")
	})
}

func withTerminal(s *specs.Spec, r *monitor.CreateRequest) {
	s.Process.Terminal, r.Terminal, r.Stdin = true, true, true
}

func TestTerminal(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.create("c1", []string{"/prog", "tty"}, withTerminal)
		// A size that comes before the terminal is the terminal's first.
		if err := p.Resize(t.Context(), c1, 81, 25); err != nil {
			t.Fatal(err)
		}
		out := newLines()
		in, write := io.Pipe()
		attached := make(chan error, 1)
		go func() { attached <- p.Attach(t.Context(), c1, task.Stdio{Stdin: in, Stdout: out}) }()
		if _, err := p.Start(t.Context(), c1); err != nil {
			t.Fatal(err)
		}
		out.await(t, "size 81x25")
		if err := p.Resize(t.Context(), c1, 100, 40); err != nil {
			t.Fatal(err)
		}
		out.await(t, "size 100x40")
		fmt.Fprintln(write, "word")
		out.expect(t, "word") // the terminal's echo
		out.expect(t, "got word")
		if exit := p.end("c1"); exit.Code != 0 {
			t.Errorf("exit = %+v", exit)
		}
		write.Close()
		if err := <-attached; err != nil {
			t.Errorf("attach = %v", err)
		}
	})
}

// TestReopenLog rotates a log in the middle of the output.
func TestReopenLog(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		req := p.create("c1", []string{"/prog", "cat"}, withStdin(true))
		out := newLines()
		in, write := io.Pipe()
		attached := make(chan error, 1)
		go func() { attached <- p.Attach(t.Context(), c1, task.Stdio{Stdin: in, Stdout: out}) }()
		if _, err := p.Start(t.Context(), c1); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(write, "old")
		out.expect(t, "old") // what a client has seen is in the log
		if err := os.Rename(req.LogPath, req.LogPath+".1"); err != nil {
			t.Fatal(err)
		}
		if err := p.ReopenLog(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(write, "new")
		out.expect(t, "new")
		write.Close()
		out.expect(t, "end of input")
		if err := <-attached; err != nil {
			t.Error(err)
		}
		p.end("c1")
		if got := records(t, req.LogPath+".1"); len(got) != 1 || got[0] != "stdout F old" {
			t.Errorf("old log = %q", got)
		}
		if got := records(t, req.LogPath); len(got) != 2 || got[0] != "stdout F new" {
			t.Errorf("new log = %q", got)
		}
	})
}

// TestFullDisk: a container goes on to its end where its log has no room.
func TestFullDisk(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		small := filepath.Join(p.work, "small")
		if err := os.Mkdir(small, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(small, 0)
		p.run("c1", []string{"/prog", "flood", "100000"}, func(_ *specs.Spec, r *monitor.CreateRequest) { r.LogPath = filepath.Join(small, "log") })
		if exit := p.end("c1"); exit.Code != 0 {
			t.Errorf("exit = %+v", exit)
		}
		data, err := os.ReadFile(filepath.Join(p.config.Dir, "shim.log"))
		if err != nil || !bytes.Contains(data, []byte("bytes were lost")) {
			t.Errorf("the monitor's log says %q, %v", data, err)
		}
	})
}

// TestAttachLeavesNoTrace: clients that come and go leave no descriptor in the monitor.
func TestAttachLeavesNoTrace(t *testing.T) {
	const repetitions = 5
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "cat"}, withStdin(false))
		once := func() {
			out := newLines()
			ctx, cancel := context.WithCancel(t.Context())
			in, write := io.Pipe()
			attached := make(chan error, 1)
			go func() { attached <- p.Attach(ctx, c1, task.Stdio{Stdin: in, Stdout: out}) }()
			fmt.Fprintln(write, "x")
			out.expect(t, "x")
			cancel()
			write.Close()
			<-attached
			if _, _, _, err := p.exec(t.Context(), "c1", "e", []string{"/prog", "say", "a", "b"}, ""); err != nil {
				t.Fatal(err)
			}
		}
		once()
		before := p.descriptors()
		for range repetitions {
			once()
		}
		// A connection ends in the monitor a moment after its client has the answer; what leaks is there every time.
		if after := p.descriptors(); len(after) >= len(before)+repetitions {
			t.Errorf("descriptors: %q, before %q", after, before)
		}
		p.kill("c1")
		p.end("c1")
	})
}

// descriptors of the monitor.
func (p *pod) descriptors() []string {
	p.t.Helper()
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID()))
	var open []string
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			open = append(open, target)
		}
	}
	return open
}
