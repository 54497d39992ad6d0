package filelock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// inherit makes what a child has of a lock between fork and exec.
func inherit(t *testing.T, l *Lock) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(l.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "inherited")
}

func TestTakeOver(t *testing.T) {
	for name, tt := range map[string]struct {
		held  time.Duration // by a child, after the end of its parent
		taken bool
	}{
		"nobody has it":                       {0, true},
		"a child is about to let go of it":    {Handover - interval, true},
		"it is held for longer than that is":  {Handover + interval, false},
		"a child lets go of it in the middle": {Handover / 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "lock")
				first, err := TakeOver(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := first.Sign(); err != nil {
					t.Fatal(err)
				}
				child := inherit(t, first)
				_ = first.file.Close() // as the kernel does it for a process that is killed
				time.AfterFunc(tt.held, func() { child.Close() })
				if tt.held == 0 {
					synctest.Wait()
				}
				begin := time.Now()
				second, err := TakeOver(path)
				if (err == nil) != tt.taken {
					t.Fatalf("after %v: %v", time.Since(begin), err)
				}
				if err == nil {
					if waited := time.Since(begin); waited < tt.held || waited > tt.held+interval {
						t.Errorf("waited %v for what was held for %v", waited, tt.held)
					}
					_ = second.Close()
				} else if held := (*HeldError)(nil); !errors.As(err, &held) || held.Owner != strconv.Itoa(os.Getpid()) || !errdefs.IsUnavailable(err) {
					t.Errorf("got %v", err)
				}
				time.Sleep(2 * Handover) // the child ends
			})
		})
	}
}

// TestClose: who ends in good order lets go of the lock, whatever children it has.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := TakeOver(path)
	if err != nil {
		t.Fatal(err)
	}
	defer inherit(t, first).Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	second, err := Take(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// TestTakeEnds: waiting ends with its context.
func TestTakeEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := TakeOver(path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	_, err = Take(ctx, path)
	if !errors.Is(err, enough) || !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	if held := (*HeldError)(nil); !errors.As(err, &held) || held.Owner != "" {
		t.Errorf("nobody signed: got %v", err)
	}
	if _, err := Take(t.Context(), filepath.Join(path, "none")); err == nil || errdefs.IsUnavailable(err) {
		t.Errorf("below a file: got %v", err)
	}
}
