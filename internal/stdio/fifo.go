package stdio

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// OpenFIFOWriter opens a FIFO for output. It keeps the reading end open too: a reader that went away and comes back
// (a restarted containerd) finds the output where it left it, and meanwhile the FIFO's buffer fills.
func OpenFIFOWriter(path string) (*os.File, error) {
	if err := checkFIFO(path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
}

// FIFOReader reads input from a FIFO. It ends when CloseInput was called and every writer has closed the FIFO.
type FIFOReader struct {
	r    *os.File
	once sync.Once
	w    *os.File
}

// OpenFIFOReader opens a FIFO for input.
func OpenFIFOReader(path string) (*FIFOReader, error) {
	if err := checkFIFO(path); err != nil {
		return nil, err
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// Without a writer of our own the first read before the client comes would be the end.
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		r.Close()
		return nil, err
	}
	return &FIFOReader{r: r, w: w}, nil
}

// Read reads; it blocks until there is input.
func (f *FIFOReader) Read(p []byte) (int, error) { return f.r.Read(p) }

// CloseInput lets Read end once the clients have closed their ends.
func (f *FIFOReader) CloseInput() error {
	var err error
	f.once.Do(func() { err = f.w.Close() })
	return err
}

// Close closes both ends and ends a Read that waits.
func (f *FIFOReader) Close() error {
	f.CloseInput()
	return f.r.Close()
}

func checkFIFO(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("stdio %q: neither empty, nor stream:, nor the absolute path of a FIFO: %w", path, errdefs.ErrInvalidArgument)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("stdio: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if info.Mode().Type() != fs.ModeNamedPipe {
		return fmt.Errorf("stdio %s: it is no FIFO: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}
