package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxSocketPath is what sockaddr_un takes, without the terminating zero.
	maxSocketPath = 107
	// maxSocketName is the longest name that may be used for a socket in RunDir, in bytes.
	maxSocketName = 16
	// shortRoot is where the sockets of a bundle with a long path lie.
	shortRoot = "/run/pistis/s"
	// maxRecord bounds the small JSON files of a bundle.
	maxRecord = 1 << 20
	// maxWords is how much of a log LastWords shows.
	maxWords = 2 << 10
)

// Dir is the absolute path of a bundle.
type Dir string

// Create makes the bundle of a sandbox with its parents. AlreadyExists when it is there.
func Create(path string) (Dir, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return "", fmt.Errorf("create bundle: %w", err)
	}
	if err := os.Mkdir(path, 0o711); errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("create bundle: %s is there already: %w", path, errdefs.ErrAlreadyExists)
	} else if err != nil {
		return "", fmt.Errorf("create bundle: %w", err)
	}
	return Dir(path), nil
}

func (d Dir) file(name string) string { return filepath.Join(string(d), name) }

// Config is the OCI spec that containerd writes.
func (d Dir) Config() string { return d.file("config.json") }

// Console is the guest's console output, Log what the shim logged.
func (d Dir) Console() string { return d.file("console.log") }
func (d Dir) Log() string     { return d.file("shim.log") }

// Lock is held by the shim for as long as it lives.
func (d Dir) Lock() string { return d.file("shim.lock") }

// ShimFile holds a Shim record, VMMFile a Process.
func (d Dir) ShimFile() string { return d.file("shim.json") }
func (d Dir) VMMFile() string  { return d.file("vmm.json") }

// Sockets is the directory of the shim's sockets: the bundle itself where its path is short enough for a socket
// address, otherwise one under /run that is derived from the path.
func (d Dir) Sockets() string {
	if len(d)+len("/vm/")+maxSocketName <= maxSocketPath {
		return string(d)
	}
	sum := sha256.Sum256([]byte(d))
	return filepath.Join(shortRoot, hex.EncodeToString(sum[:16]))
}

// ShimSocket serves ttrpc, StreamSocket byte streams.
func (d Dir) ShimSocket() string   { return filepath.Join(d.Sockets(), "shim.sock") }
func (d Dir) StreamSocket() string { return filepath.Join(d.Sockets(), "stream.sock") }

// RunDir is the VMM's own directory, for its sockets. Names in it have at most 16 bytes.
func (d Dir) RunDir() string { return filepath.Join(d.Sockets(), "vm") }

// Shim is what a shim records of itself.
type Shim struct {
	Process Process `json:"process"`
	// Cgroup of the pod, relative to each hierarchy's root; empty when it has none.
	Cgroup string `json:"cgroup,omitempty"`
}

// WriteShim and WriteVMM replace the records.
func (d Dir) WriteShim(s Shim) error   { return WriteRecord(d.ShimFile(), s) }
func (d Dir) WriteVMM(p Process) error { return WriteRecord(d.VMMFile(), p) }

// ReadShim and ReadVMM read them. NotFound when there is none.
func (d Dir) ReadShim() (s Shim, err error) { return s, ReadRecord(d.ShimFile(), &s) }

// ReadVMM reads the VMM's record.
func (d Dir) ReadVMM() (p Process, err error) { return p, ReadRecord(d.VMMFile(), &p) }

// WriteRecord replaces a small JSON file, so that it is never seen half written.
func WriteRecord(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", filepath.Base(path), err), os.Remove(tmp))
	}
	return nil
}

// ReadRecord reads what WriteRecord wrote. NotFound when there is no such file, DataLoss when it cannot be understood.
func ReadRecord(path string, v any) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w", path, errdefs.ErrNotFound)
	} else if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return nil
}

// LastWords are the last lines of a log, for an error about who wrote it. Empty where there are none.
func LastWords(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxWords {
		f.Seek(-maxWords, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, maxWords))
	return strings.ToValidUTF8(string(bytes.TrimSpace(text)), "?") // gRPC takes nothing else
}

// TakeLock takes the bundle's lock. The caller keeps the file open for as long as it owns the bundle; it may hand
// the descriptor to the process that shall own it. Unavailable while somebody else holds it.
func (d Dir) TakeLock() (*os.File, error) {
	f, err := os.OpenFile(d.Lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock bundle: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock bundle: %s belongs to a shim that runs: %w", d, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("lock bundle: %s: %w", d, err)
	}
	return f, nil
}

// Locked tells whether a shim that lives owns the bundle.
func (d Dir) Locked() (bool, error) {
	f, err := os.Open(d.Lock())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("check bundle lock: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Remove removes the bundle and its sockets. It is idempotent; the shim must be dead.
func (d Dir) Remove() error {
	err := os.RemoveAll(string(d))
	if s := d.Sockets(); s != string(d) {
		err = errors.Join(err, os.RemoveAll(s))
	}
	return err
}
