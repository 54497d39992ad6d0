package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/pistis-run/pistis/internal/image"
)

// usageAge is how old an answer may be: walking costs, and the kubelet asks often.
const usageAge = 10 * time.Second

// usage says what the files below a directory take on the disk.
type usage struct {
	dir  string
	mu   sync.Mutex
	last image.FSInfo
}

// info answers with numbers that are at most usageAge old. Concurrent callers wait for one walk.
func (u *usage) info(ctx context.Context) (image.FSInfo, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.last.At) < usageAge {
		return u.last, nil
	}
	info := image.FSInfo{Mountpoint: u.dir, At: time.Now()}
	err := filepath.WalkDir(u.dir, func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // pods come and go
		}
		if err != nil {
			return err
		}
		stat, err := entry.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if s, ok := stat.Sys().(*syscall.Stat_t); ok {
			info.UsedBytes += uint64(s.Blocks) * 512 // always units of 512, see stat(2): what sparse files really take
			info.UsedInodes++
		}
		return nil
	})
	if err != nil {
		return image.FSInfo{}, fmt.Errorf("disk usage of %s: %w", u.dir, err)
	}
	u.last = info
	return info, nil
}
