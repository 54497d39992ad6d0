package monitor_test

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/task"
)

// forEach runs a test with every runtime there is.
func forEach(t *testing.T, test func(t *testing.T, p *pod)) {
	for name, path := range runtimes(t) {
		t.Run(name, func(t *testing.T) { test(t, launch(t, path)) })
	}
}

func TestRun(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		req := p.run("c1", []string{"/prog", "say", "out", "err"})
		exit := p.end("c1")
		if exit.Code != 0 || exit.At.IsZero() || exit.OOMKilled || exit.Reason != "" {
			t.Errorf("exit = %+v", exit)
		}
		got := records(t, req.LogPath)
		slices.Sort(got)
		if !slices.Equal(got, []string{"stderr F err", "stdout F out"}) {
			t.Errorf("log = %q", got)
		}
		p.run("c2", []string{"/prog", "exit", "3"})
		if exit := p.end("c2"); exit.Code != 3 {
			t.Errorf("exit = %+v", exit)
		}
		if err := p.Delete(t.Context(), task.ID{Container: "c2"}); !errdefs.IsNotFound(err) {
			t.Errorf("second delete = %v", err)
		}
		if err := p.Shutdown(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
}

func TestExec(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "pause"})
		out, errOut, exit, err := p.exec(t.Context(), "c1", "e1", []string{"/prog", "say", "hello", "world"}, "")
		if out != "hello\n" || errOut != "world\n" || exit.Code != 0 || err != nil {
			t.Errorf("exec = %q, %q, %+v, %v", out, errOut, exit, err)
		}
		p.kill("c1")
		if exit := p.end("c1"); exit.Code != 137 {
			t.Errorf("exit = %+v", exit)
		}
	})
}
