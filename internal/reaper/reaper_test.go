package reaper

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func start(t *testing.T) *Reaper {
	t.Helper()
	// Orphans come to the test process as they come to the first process of a guest.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	r := New()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func TestRunProgram(t *testing.T) {
	r := start(t)
	for script, want := range map[string]uint32{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		exit, err := r.RunProgram(t.Context(), []string{"/bin/sh", "-c", script})
		if err != nil || exit.Code != want || exit.At.IsZero() {
			t.Errorf("%s: got %+v, %v; want code %d", script, exit, err, want)
		}
	}
	if _, err := r.RunProgram(t.Context(), []string{"/no/such/program"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: %v", err)
	}
}

func TestRunProgramEndsWithItsContext(t *testing.T) {
	r := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	go func() {
		_, _ = io.ReadFull(pr, make([]byte, 2))
		cancel()
	}()
	_, err = r.RunProgram(ctx, []string{"/bin/sh", "-c", "echo x; exec sleep 600"}, nil, pw)
	pw.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestAdopt starts programs that leave a grandchild, which may have ended before it is adopted.
func TestAdopt(t *testing.T) {
	r := start(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			rec := r.Record()
			defer rec.Close()
			pr, pw, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			defer pr.Close()
			hold, release, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			code := strconv.Itoa(i + 1)
			script := "exec 3<&0; (read x <&3; exit " + code + ") >/dev/null & echo $!"
			exit, err := r.RunProgram(t.Context(), []string{"/bin/sh", "-c", script}, hold, pw)
			pw.Close()
			hold.Close()
			release.Close()
			if err != nil || exit.Code != 0 {
				t.Errorf("run: %+v, %v", exit, err)
				return
			}
			text, err := io.ReadAll(pr)
			if err != nil {
				t.Error(err)
				return
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Error(err)
				return
			}
			p := rec.Adopt(pid)
			<-p.Done()
			if got := p.Exit().Code; got != uint32(i+1) {
				t.Errorf("grandchild exited %d, want %s", got, code)
			}
		})
	}
	wg.Wait()
	if len(r.early) != 0 || len(r.procs) != 0 {
		t.Errorf("left in the table: %v, %v", r.early, r.procs)
	}
}

func TestSignal(t *testing.T) {
	r := start(t)
	p, err := r.Start("/bin/sleep", []string{"sleep", "600"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if p.Exit().Code != 143 {
		t.Errorf("got %+v", p.Exit())
	}
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal after the end: %v", err)
	}
}
