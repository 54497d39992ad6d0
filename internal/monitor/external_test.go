package monitor_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

// launchWithout launches a monitor without a runtime, whose containers others run.
func launchWithout(t *testing.T) *monitor.Client {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, not tested: monitors need root")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, monitorName)
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, program)
	}
	if err != nil {
		t.Fatal(err)
	}
	config := monitor.Config{Binary: program, Dir: filepath.Join(dir, "m")}
	m, err := monitor.Launch(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(monitor.Cleanup(context.Background(), config.Dir), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestExternal: a monitor writes the log of a container that it does not run, and keeps its exit.
func TestExternal(t *testing.T) {
	m := launchWithout(t)
	bundle := t.TempDir()
	log := filepath.Join(bundle, "c1.log")
	if err := m.Create(t.Context(), monitor.CreateRequest{ID: "c1", Bundle: bundle, LogPath: log, External: true}); err != nil {
		t.Fatal(err)
	}
	exit := task.Exit{Code: 3, At: time.Now().Round(0), Reason: "for a test"}
	fifos := monitor.StdioDir(m.Dir(), c1)
	out, err := os.OpenFile(stdio.FIFO(fifos, stdio.Stdout), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(t.Context(), c1); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(t.Context(), c1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second start = %v", err)
	}
	if err := m.Delete(t.Context(), c1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("deletion of a running one = %v", err)
	}
	if _, err := out.Write(bytes.Repeat([]byte("a line\n"), 20000)); err != nil {
		t.Fatal(err)
	}
	out.Close()
	for _, told := range []task.Exit{exit, {Code: 4, At: time.Now()}} {
		counts, err := m.Exited(t.Context(), "c1", told)
		if err != nil || counts.Code != 3 || counts.Reason != exit.Reason {
			t.Errorf("the exit that counts = %+v, %v", counts, err)
		}
	}
	if got := records(t, log); len(got) != 20000 || got[19999] != "stdout F a line" {
		t.Errorf("the log has %d lines", len(got))
	}
	if waited, err := m.Wait(t.Context(), c1); err != nil || waited.Code != 3 || !waited.At.Equal(exit.At) {
		t.Errorf("wait = %+v, %v", waited, err)
	}
	if err := m.Delete(t.Context(), c1); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(fifos)); !os.IsNotExist(err) {
		t.Errorf("the FIFOs after the deletion: %v", err)
	}
}

func TestExternalNeverStarted(t *testing.T) {
	m := launchWithout(t)
	if err := m.Create(t.Context(), monitor.CreateRequest{ID: "c1", Bundle: t.TempDir(), External: true}); err != nil {
		t.Fatal(err)
	}
	if err := m.Checkpoint(t.Context(), "c1", "/i", "/w"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("checkpoint = %v", err)
	}
	if err := m.Signal(t.Context(), c1, 9, true); err != nil {
		t.Fatal(err)
	}
	if exit, err := m.Wait(t.Context(), c1); err != nil || exit.Code != 137 {
		t.Errorf("wait = %+v, %v", exit, err)
	}
	if err := m.Shutdown(t.Context(), true); err != nil {
		t.Error(err)
	}
}

func TestProgram(t *testing.T) {
	m := launchWithout(t)
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// What it leaves behind holds its output open.
	got, err := m.Program(t.Context(), monitor.ProgramArgs{
		Args: []string{shell, "-c", "cat; pwd; echo $A >&2; sleep 1000 & exit 5"}, Dir: dir, Env: []string{"A=b", "PATH=/bin:/usr/bin"}, Input: []byte("in\n"),
	})
	if err != nil || got.Code != 5 || string(got.Output) != "in\n"+dir+"\n" || string(got.Errors) != "b\n" {
		t.Errorf("program = %d %q %q, %v", got.Code, got.Output, got.Errors, err)
	}
	if _, err := m.Program(t.Context(), monitor.ProgramArgs{Args: []string{"/no/such"}, Dir: dir}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a missing program = %v", err)
	}
	if _, err := m.Program(t.Context(), monitor.ProgramArgs{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no program = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(dir, "started")
	ended := make(chan error, 1)
	go func() {
		_, err := m.Program(ctx, monitor.ProgramArgs{Args: []string{shell, "-c", "mkfifo p; : > started; cat p"}, Dir: dir, Env: []string{"PATH=/bin:/usr/bin"}})
		ended <- err
	}()
	for !exists(started) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a program that was given up = %v", err)
	}
}

func exists(path string) bool {
	entries, err := os.ReadDir(filepath.Dir(path))
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == filepath.Base(path) })
}
