package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestWipeIsNotKilled: who presses ^C waits until pistisd has ended what it is at.
func TestWipeIsNotKilled(t *testing.T) {
	dir := t.TempDir()
	const daemon = "#!/bin/sh\ntrap 'kill $!; exit 7' INT\nsleep 60 >/dev/null 2>&1 &\necho at it\nwait\n"
	if err := os.WriteFile(filepath.Join(dir, "pistisd"), []byte(daemon), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, begun := io.Pipe()
	go func() {
		out.Read(make([]byte, 16))
		cancel()
	}()
	cmd := (&app{out: begun, err: io.Discard}).wipeCommand()
	cmd.SetArgs([]string{"--yes"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(ctx)
	var code exitError
	if !errors.As(err, &code) || code != 7 {
		t.Errorf("it ended with %v", err)
	}
}
