// Package volumes makes the pod's volumes in memory, which are emptyDir volumes of medium Memory, and finds parts of volumes
// for containers that mount no more than that.
//
// A volume in memory is a tmpfs that lives as long as the guest. Containers write to volumes and are hostile: what is looked up
// in one is looked up inside it. The package owns the mounts below its directory and imports nothing of ours but the contract.
package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// maxVolumes bounds the volumes of a pod.
const maxVolumes = 256

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,63}$`)

// Set is the pod's volumes.
type Set struct {
	dir    string
	shares func(id string) string

	mu   sync.Mutex
	made map[string]bool
}

// New returns a set that keeps its mounts below dir, which need not exist. shares says where a share is mounted.
func New(dir string, shares func(id string) string) *Set {
	return &Set{dir: dir, shares: shares, made: map[string]bool{}}
}

// Placed are mounts that were given to one container.
type Placed struct{ dir string }

// Place makes the volumes that are not there and gives the mounts their sources. A source is a mount of its own, so that
// nobody changes where it leads while the runtime uses it; Close it once the container is created.
func (v *Set) Place(container string, mounts []specs.Mount, inMemory []*agentv1.MemoryMount, parts []*agentv1.SharePart) (_ *Placed, err error) {
	p := &Placed{dir: filepath.Join(v.dir, "placed", container)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	for _, m := range inMemory {
		if err := check(mounts, m.Mount, m.Volume, m.Path, m.Path == ""); err != nil {
			return nil, err
		}
		if err := p.place(&mounts[m.Mount], m.Mount, func() (int, error) { return v.open(m) }); err != nil {
			return nil, fmt.Errorf("volume %s in memory: %w", m.Volume, err)
		}
	}
	for _, m := range parts {
		if err := check(mounts, m.Mount, m.Share, m.Path, false); err != nil {
			return nil, err
		}
		if err := p.place(&mounts[m.Mount], m.Mount, func() (int, error) { return openPart(v.shares(m.Share), m.Path) }); err != nil {
			return nil, fmt.Errorf("%s in share %s: %w", m.Path, m.Share, err)
		}
	}
	return p, nil
}

func check(mounts []specs.Mount, n uint32, volume, path string, whole bool) error {
	if int(n) >= len(mounts) || !validName.MatchString(volume) || !whole && !filepath.IsLocal(path) {
		return fmt.Errorf("volume %.100q: mount %d, path %.200q: %w", volume, n, path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Close takes the sources away again.
func (p *Placed) Close() error {
	points, err := filepath.Glob(filepath.Join(p.dir, "*"))
	errs := []error{err}
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
		errs = append(errs, os.Remove(point))
	}
	if err := os.Remove(p.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// place gives a mount what open finds as its source.
func (p *Placed) place(to *specs.Mount, n uint32, open func() (int, error)) error {
	source, err := open()
	if err != nil {
		return err
	}
	defer unix.Close(source)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	point := filepath.Join(p.dir, strconv.Itoa(int(n)))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.MkdirAll(point, 0o700)
	case unix.S_IFREG:
		if err = os.MkdirAll(filepath.Dir(point), 0o700); err == nil {
			err = os.WriteFile(point, nil, 0o600)
		}
	default:
		err = fmt.Errorf("it is neither a file nor a directory: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source), point, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	to.Type, to.Source = "bind", point
	return nil
}

// openPart finds what is in a share under a name that leads through directories alone.
func openPart(share, path string) (int, error) {
	root, err := unix.Open(share, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
}

// volume returns where a volume is mounted, and mounts it the first time.
func (v *Set) volume(m *agentv1.MemoryMount) (string, error) {
	dir := filepath.Join(v.dir, "volumes", m.Volume)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.made[m.Volume] {
		return dir, nil
	}
	if len(v.made) >= maxVolumes {
		return "", fmt.Errorf("the pod has %d: %w", maxVolumes, errdefs.ErrResourceExhausted)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	options := fmt.Sprintf("size=%d,mode=%o,uid=%d,gid=%d", m.SizeBytes, m.Mode&0o7777, m.Uid, m.Gid)
	if err := unix.Mount("memory", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return "", errors.Join(fmt.Errorf("mount tmpfs of %d bytes: %w", m.SizeBytes, err), os.Remove(dir))
	}
	v.made[m.Volume] = true
	return dir, nil
}

// open finds a path in a volume in memory, and makes as directories what is not there.
func (v *Set) open(m *agentv1.MemoryMount) (int, error) {
	dir, err := v.volume(m)
	if err != nil {
		return -1, err
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if m.Path == "" {
		return root, nil
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	at := ""
	last := -1
	for part := range strings.SplitSeq(filepath.Clean(m.Path), "/") {
		parent := at
		at = filepath.Join(at, part)
		if last >= 0 {
			unix.Close(last)
		}
		last, err = unix.Openat2(root, at, &how)
		if errors.Is(err, unix.ENOENT) {
			last, err = mkdir(root, parent, part, m, &how)
		}
		if err != nil {
			return -1, fmt.Errorf("%s: %w", at, err)
		}
	}
	return last, nil
}

// mkdir makes a directory that belongs to whom the volume belongs to.
func mkdir(root int, parent, name string, m *agentv1.MemoryMount, how *unix.OpenHow) (int, error) {
	dir, err := unix.Dup(root)
	if parent != "" {
		unix.Close(dir)
		dir, err = unix.Openat2(root, parent, how)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.Fchown(fd, int(m.Uid), int(m.Gid)), unix.Fchmod(fd, m.Mode&0o7777)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
