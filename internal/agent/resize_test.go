package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestResizeOvertaken: processors that do not come keep no later change waiting.
func TestResizeOvertaken(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "cpu1"), 0o700); err != nil {
		t.Fatal(err)
	}
	online := filepath.Join(dir, "cpu1", "online")
	if err := os.WriteFile(online, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := New(Config{})
	first := make(chan error)
	go func() {
		_, err := a.useProcessors(t.Context(), dir, 3)
		first <- err
	}()
	// Until the first one waits for the third processor, the second may come before it and overtake nothing.
	for text := ""; text != "1"; {
		select {
		case err := <-first:
			t.Fatal(err)
		default:
		}
		b, err := os.ReadFile(online)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	if n, err := a.useProcessors(t.Context(), dir, 2); n != 2 || err != nil {
		t.Errorf("the second: %d, %v", n, err)
	}
	if err := <-first; !errdefs.IsAborted(err) {
		t.Errorf("the first: %v", err)
	}
}
