package processors

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUse: the first processor has no switch; a new one may appear before it has one.
func TestUse(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"cpu0", "cpu1", "cpu2", "cpu3"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	set := func(name, state string) {
		if err := os.WriteFile(filepath.Join(dir, name, "online"), []byte(state+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("cpu1", "1")
	set("cpu2", "0")
	states := func() string {
		var all []string
		for _, name := range []string{"cpu1", "cpu2"} {
			text, err := os.ReadFile(filepath.Join(dir, name, "online"))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, strings.TrimSpace(string(text)))
		}
		return strings.Join(all, " ")
	}
	for _, step := range []struct {
		n    int
		want string
	}{{2, "1 0"}, {3, "1 1"}, {1, "0 0"}, {3, "1 1"}} {
		if used, err := Use(t.Context(), dir, step.n); err != nil || used != step.n || states() != step.want {
			t.Errorf("use %d: %d, %v, switches %q, want %q", step.n, used, err, states(), step.want)
		}
	}
	ended := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ended)
	if used, err := Use(ctx, dir, 4); !errors.Is(err, ended) || used != 3 {
		t.Errorf("one that never comes: %d, %v", used, err)
	}
	if _, err := Use(t.Context(), dir, 0); err == nil {
		t.Error("no processors: no error")
	}
}
