package failpoint

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := parse(" a.b=error, c=kill9,,d=pause,e=panic ")
	want := map[string]mode{"a.b": modeError, "c": modeKill, "d": modePause, "e": modePanic}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"a", "a=", "=error", "a=explode"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestModes(t *testing.T) {
	if err := Hit(t.Context(), "not.on"); err != nil {
		t.Error(err)
	}
	if err := fire(t.Context(), "x", modeError); !errors.Is(err, ErrInjected) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fire(ctx, "x", modePause); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	_ = fire(t.Context(), "x", modePanic)
}

func TestKillEndsTheProcess(t *testing.T) {
	if os.Getenv(Env) != "" {
		_ = Hit(t.Context(), "here")
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillEndsTheProcess$")
	cmd.Env = append(os.Environ(), Env+"=here=kill9")
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("child ended with %v", err)
	}
}
