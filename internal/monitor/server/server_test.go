package server

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

// TestHeldPipe: somebody who holds a pipe open does not keep its reader for ever, and what was in the pipe is not lost.
func TestHeldPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s, err := openStreams(false, false, path, "", &buffers{})
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 99) + "\n"
	const lines = 2000
	if _, err := s.ends.Child()[stdio.Stdout].WriteString(strings.Repeat(line, lines)); err != nil {
		t.Fatal(err)
	}
	f := s.ends.Ours(stdio.Stdout)
	if err := f.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	s.pump(f, stdio.KindStdout) // it returns
	s.close()
	if err := s.closeLog(); err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(path)
	if n := bytes.Count(data, []byte(line)); n != lines || err != nil {
		t.Errorf("%d of %d lines are in the log, %v", n, lines, err)
	}
}

func TestMergeResources(t *testing.T) {
	dir := t.TempDir()
	spec := `{"process":{"x":18446744073709551615},"linux":{"resources":{"memory":{"limit":1,"swap":2},"devices":[{"allow":false}]}}}`
	if err := os.WriteFile(filepath.Join(dir, specFile), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mergeResources(dir, json.RawMessage(`{"memory":{"limit":9007199254740993},"cpu":{"shares":3}}`)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, specFile))
	want := `{"linux":{"resources":{"cpu":{"shares":3},"devices":[{"allow":false}],"memory":{"limit":9007199254740993,"swap":2}}},"process":{"x":18446744073709551615}}`
	if string(data) != want || err != nil {
		t.Errorf("spec = %s, %v", data, err)
	}
}

// TestNoCriu: where criu is not installed, a checkpoint says that it has to be.
func TestNoCriu(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	s, c := &Server{}, &container{process: newProcess(task.ID{Container: "c"}, running)}
	err := s.checkpoint(t.Context(), c, json.RawMessage("{}"))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "install criu") {
		t.Error(err)
	}
}
