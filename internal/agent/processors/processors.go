// Package processors puts the guest's processors into use and out of it: who plugs one does not start it, and one that is to
// be unplugged has to be idle.
//
// It owns nothing and imports nothing of ours but the wait for devices.
package processors

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pistis-run/pistis/internal/agent/uevent"
)

// Dir is the kernel's, of all processors.
const Dir = "/sys/devices/system/cpu"

// Use has the kernel use the first n processors in dir and no others, and returns how many are in use. It waits for those
// that the host has promised and the kernel does not have yet, until ctx ends.
func Use(ctx context.Context, dir string, n int) (used int, err error) {
	if n < 1 {
		return 0, fmt.Errorf("a guest uses one processor at least")
	}
	err = uevent.Wait(ctx, func() (bool, error) {
		used, err = apply(dir, n)
		return used == n, err
	})
	if err != nil {
		return used, fmt.Errorf("use %d processors, of which there are %d: %w", n, used, err)
	}
	return used, nil
}

// apply sets what can be set now, and returns how many are in use then.
func apply(dir string, n int) (int, error) {
	for i := 1; ; i++ { // the first is always in use
		file := filepath.Join(dir, "cpu"+strconv.Itoa(i), "online")
		state, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return min(i, n), nil
		} else if err != nil {
			return 0, err
		}
		want := "0"
		if i < n {
			want = "1"
		}
		if strings.TrimSpace(string(state)) == want {
			continue
		}
		if err := os.WriteFile(file, []byte(want), 0); err != nil {
			return 0, err
		}
	}
}
