package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/pistis-run/pistis/internal/guestimage"
)

// vmlinuxes are uncompressed kernels for hypervisors that boot nothing else. Each is made once, and named by the hash of
// the kernel that it came from; those of other kernels are removed when a new one is made, but for those that this daemon has
// given out: a VM may be about to open one.
type vmlinuxes struct {
	dir string

	mu   sync.Mutex
	from fs.FileInfo // the kernel that path came from
	path string
	// given are the names of the files that were returned.
	given map[string]bool
}

// get returns the uncompressed form of a kernel.
func (v *vmlinuxes) get(kernel string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	info, err := os.Stat(kernel)
	if err != nil {
		return "", err
	}
	if v.from != nil && os.SameFile(v.from, info) && v.from.ModTime().Equal(info.ModTime()) && v.from.Size() == info.Size() {
		if _, err := os.Stat(v.path); err == nil {
			return v.path, nil
		}
	}
	sum, err := hashFile(kernel)
	if err != nil {
		return "", err
	}
	path := filepath.Join(v.dir, sum)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		err = v.make(kernel, path)
		if err != nil {
			return "", fmt.Errorf("uncompress the guest's kernel: %w", err)
		}
	} else if err != nil {
		return "", err
	}
	v.from, v.path = info, path
	if v.given == nil {
		v.given = map[string]bool{}
	}
	v.given[sum] = true
	return path, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// make writes a file as a whole or not at all, and removes the others.
func (v *vmlinuxes) make(kernel, path string) (err error) {
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		return err
	}
	others, err := os.ReadDir(v.dir)
	if err != nil {
		return err
	}
	for _, other := range others {
		if v.given[other.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(v.dir, other.Name())); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(v.dir, "part-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	// VMMs read it, as users of their own. It is on the disk before it has its name, which nobody looks behind later.
	err = errors.Join(guestimage.WriteVmlinux(f, kernel), f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
