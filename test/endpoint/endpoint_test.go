package endpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pistis-run/pistis/test/leak"
)

// process is an endpoint whose daemon is a shell's command.
func process(t *testing.T, command string) *Endpoint {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups want root")
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	e := &Endpoint{Name: "fake", Scope: leak.Scope{Cgroup: "/pistis-endpoint-test/pods"}, argv: []string{"/bin/sh", "-c", command}, log: log}
	e.lost, e.lose = context.WithCancelCause(context.Background())
	t.Cleanup(func() {
		if err := errors.Join(e.Kill(), log.Close(), RemoveCgroups(e.cgroup())); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestWatch(t *testing.T) {
	e := process(t, "echo words of the first life; exec sleep 1000000")
	if err := e.Launch(); err != nil {
		t.Fatal(err)
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := e.Watch(t.Context())
	defer stop()
	if ctx.Err() != nil || e.serves() {
		t.Errorf("an end that was wanted: %v", context.Cause(ctx))
	}
	e.argv[2] = "echo no disk; exit 3"
	if err := e.Launch(); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	ended := context.Cause(ctx)
	if !strings.Contains(ended.Error(), "no disk") || !strings.Contains(ended.Error(), "exit status 3") || strings.Contains(ended.Error(), "first life") {
		t.Errorf("got %v", ended)
	}
	err := e.Poll(t.Context(), "an answer", func(ctx context.Context) error {
		<-ctx.Done() // as a call that waits for somebody to connect to
		return ctx.Err()
	})
	if !errors.Is(err, ended) || e.serves() {
		t.Errorf("polling: got %v", err)
	}
}
