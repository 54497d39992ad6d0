package monitor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

func TestExec(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.create("c1", []string{"/prog", "pause"})
		if _, _, _, err := p.exec(t.Context(), "c1", "early", []string{"/prog"}, ""); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("exec before the start = %v", err)
		}
		if _, err := p.Start(t.Context(), c1); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			args          []string
			stdin         string
			out, errOut   string
			code          uint32
			wantErr, text string
		}{
			{args: []string{"/prog", "say", "hello", "world"}, out: "hello\n", errOut: "world\n"},
			{args: []string{"/prog", "exit", "5"}, code: 5},
			{args: []string{"/prog", "cat"}, stdin: "some input\n", out: "some input\nend of input\n"},
			{args: []string{"nosuch"}, wantErr: `exec: "nosuch": executable file not found in $PATH`},
		} {
			out, errOut, exit, err := p.exec(t.Context(), "c1", "e1", tt.args, tt.stdin)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) || !errdefs.IsInvalidArgument(err) {
					t.Errorf("%q: error = %v", tt.args, err)
				}
				continue
			}
			if out != tt.out || errOut != tt.errOut || exit.Code != tt.code || err != nil {
				t.Errorf("%q = %q, %q, %+v, %v", tt.args, out, errOut, exit, err)
			}
		}
		p.kill("c1")
		p.end("c1")
		if _, _, _, err := p.exec(t.Context(), "c1", "late", []string{"/prog"}, ""); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("exec after the end = %v", err)
		}
	})
}

// TestExecEnds: an exec whose caller gives up is killed as the daemon does it, and one whose container ends, ends too.
func TestExecEnds(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "pause"})
		process, _ := json.Marshal(specs.Process{Args: []string{"/prog", "pause"}, Cwd: "/"})
		id := task.ID{Container: "c1", Exec: "e1"}
		if err := p.Exec(t.Context(), task.ExecRequest{ID: id, Process: process, Stdout: true}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		out := newLines()
		attached := make(chan error, 1)
		go func() { attached <- p.Attach(ctx, id, task.Stdio{Stdout: out}) }()
		if _, err := p.Start(ctx, id); err != nil {
			t.Fatal(err)
		}
		out.expect(t, "ready")
		timeout := errors.New("timeout")
		cancel(timeout)
		if _, err := p.Wait(ctx, id); !errors.Is(err, timeout) {
			t.Errorf("wait = %v", err)
		}
		if err := <-attached; !errors.Is(err, timeout) {
			t.Errorf("attach = %v", err)
		}
		if err := p.Delete(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("delete of a running exec = %v", err)
		}
		if err := p.Signal(t.Context(), id, uint32(unix.SIGKILL), false); err != nil {
			t.Error(err)
		}
		if exit, err := p.Wait(t.Context(), id); exit.Code != 137 || err != nil {
			t.Errorf("exit = %+v, %v", exit, err)
		}
		if err := p.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}

		ended := make(chan error, 1)
		id.Exec = "e2"
		p.execDetached(id, []string{"/prog", "pause"})
		go func() {
			_, err := p.Wait(context.Background(), id)
			ended <- err
		}()
		p.kill("c1")
		if err := <-ended; err != nil {
			t.Error(err)
		}
		p.end("c1")
	})
}

func TestExecTerminal(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "pause"})
		process, _ := json.Marshal(specs.Process{Args: []string{"/prog", "tty"}, Cwd: "/", Terminal: true})
		id := task.ID{Container: "c1", Exec: "e1"}
		if err := p.Exec(t.Context(), task.ExecRequest{ID: id, Process: process, Stdin: true, Stdout: true, Terminal: true}); err != nil {
			t.Fatal(err)
		}
		if err := p.Resize(t.Context(), id, 81, 25); err != nil {
			t.Fatal(err)
		}
		out := newLines()
		in, write := io.Pipe()
		attached := make(chan error, 1)
		go func() { attached <- p.Attach(t.Context(), id, task.Stdio{Stdin: in, Stdout: out}) }()
		if _, err := p.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		out.await(t, "size 81x25")
		if err := p.Resize(t.Context(), id, 100, 40); err != nil {
			t.Fatal(err)
		}
		out.await(t, "size 100x40")
		fmt.Fprintln(write, "word")
		out.expect(t, "word")
		out.expect(t, "got word")
		if exit, err := p.Wait(t.Context(), id); exit.Code != 0 || err != nil {
			t.Errorf("exit = %+v, %v", exit, err)
		}
		if err := <-attached; err != nil {
			t.Error(err)
		}
		write.Close()
		if err := p.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
		p.kill("c1")
		p.end("c1")
	})
}

// TestManyExecs runs them at once.
func TestManyExecs(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "pause"})
		var group sync.WaitGroup
		for i := range 20 {
			group.Go(func() {
				for j := range 3 {
					text := fmt.Sprintf("%d-%d", i, j)
					out, _, exit, err := p.exec(t.Context(), "c1", text, []string{"/prog", "say", text, ""}, "")
					if out != text+"\n" || exit.Code != 0 || err != nil {
						t.Errorf("%s: %q, %+v, %v", text, out, exit, err)
					}
				}
			})
		}
		group.Wait()
		p.kill("c1")
		p.end("c1")
	})
}
