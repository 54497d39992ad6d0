package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

// TestCommonMemory: it is opened once, when it is asked for, and nobody waits for that.
func TestCommonMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, failure := range []error{nil, errors.New("no driver")} {
			opens, wait := 0, make(chan struct{})
			m := &commonMemory{log: slog.New(slog.DiscardHandler), open: func() (*os.File, error) {
				opens++
				<-wait
				return f, failure
			}}
			for range 2 {
				if m.Ready() {
					t.Error("ready before it is open")
				}
			}
			close(wait)
			synctest.Wait()
			if m.Ready() != (failure == nil) || opens != 1 {
				t.Errorf("%v: opened %d times, ready %v", failure, opens, m.Ready())
			}
		}
	})
}
