package boot

import (
	"log/slog"
	"slices"
	"testing"
)

func TestParseParams(t *testing.T) {
	got, err := parseParams("console=ttyS0 quiet pistis.transport=serial pistis.loglevel=debug root=x pistis.other=1\n")
	want := Params{Transport: "serial", LogLevel: slog.LevelDebug}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got, err := parseParams("pistis.probe"); err != nil || !got.Probe {
		t.Errorf("probe: got %+v, %v", got, err)
	}
	if got, err := parseParams("pistis.loglevel=loud"); err == nil {
		t.Errorf("a level that does not exist: %+v", got)
	}
}

func TestModulePaths(t *testing.T) {
	got := modulePaths("/lib/a.ko\n\n# no\n  /lib/b.ko \n/lib/c.ko")
	if !slices.Equal(got, []string{"/lib/a.ko", "/lib/b.ko", "/lib/c.ko"}) {
		t.Errorf("got %q", got)
	}
}
