package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
)

// TestKinds: a handler does not become another one under pods of which something is there.
func TestKinds(t *testing.T) {
	k := kinds{map[string]config.Handler{"vm": {Type: config.HandlerVM}, "runc": {Type: config.HandlerShim}}, paths{state: t.TempDir()}}
	for _, dir := range []string{filepath.Join(k.paths.pods(), "a"), filepath.Join(k.paths.hostPods(), "vm", "b"), filepath.Join(k.paths.hostPods(), "runc", "c")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if k.Of("vm") != config.HandlerVM || k.Of("gone") != "" {
		t.Errorf("%q, %q", k.Of("vm"), k.Of("gone"))
	}
	for _, c := range []struct {
		id, handler, kind string
		refused           bool
	}{
		{"a", "vm", config.HandlerVM, false},
		{"b", "vm", config.HandlerOCI, true},
		{"c", "runc", config.HandlerOCI, true},
		{"a", "runc", config.HandlerVM, true},
		{"d", "runc", config.HandlerOCI, false}, // nothing of it is there
		{"b", "gone", config.HandlerOCI, false}, // is told when it is to be ended
	} {
		err := k.Check(c.id, c.handler, c.kind)
		if c.refused != errdefs.IsFailedPrecondition(err) || c.refused && !strings.Contains(err.Error(), `type = "`+c.kind) || !c.refused && err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestProgramAt: a program that was replaced is another one.
func TestProgramAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shim")
	at := func(content string) program {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		p, err := programAt(path)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := at("1")
	if again, err := programAt(path); err != nil || again != first {
		t.Errorf("the same: %+v, %+v, %v", first, again, err)
	}
	if second := at("2"); second == first {
		t.Errorf("another: %+v", second)
	}
	if _, err := programAt(path + "none"); !os.IsNotExist(err) {
		t.Errorf("none: %v", err)
	}
}
