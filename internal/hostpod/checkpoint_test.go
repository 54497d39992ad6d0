package hostpod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRefusal(t *testing.T) {
	log := filepath.Join(t.TempDir(), checkpointLog)
	failed := fmt.Errorf("runc checkpoint: criu failed: %w", errdefs.ErrInternal)
	if err := refusal(t.Context(), failed, log); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "criu check") {
		t.Errorf("without a log: %v", err)
	}
	if err := refusal(t.Context(), fmt.Errorf("no disk: %w", errdefs.ErrInternal), log); !errdefs.IsInternal(err) {
		t.Errorf("not of criu: %v", err)
	}
	if err := refusal(t.Context(), fmt.Errorf("unknown command checkpoint: %w", errdefs.ErrNotImplemented), log); !errdefs.IsNotImplemented(err) {
		t.Errorf("a runtime without it: %v", err)
	}
	text := strings.Repeat("(00.1) pie: x\n", maxDumpLog/10) + "(00.2) Error (criu/a.c:1): first\n(00.3) Error (criu/b.c:2): second\n" +
		"(00.4) Warn x\n(00.5) Error (criu/c.c:3): third\n(00.6) Error (criu/d.c:4): fourth\xff"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	err := refusal(t.Context(), failed, log)
	if want := "(criu/b.c:2): second; (criu/c.c:3): third; (criu/d.c:4): fourth?"; !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := refusal(ctx, failed, log); err != failed {
		t.Errorf("after its time: %v", err)
	}
}
