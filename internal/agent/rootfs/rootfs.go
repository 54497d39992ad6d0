package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	lostFound = "lost+found"
	// maxLayers is what overlayfs stacks, less the one that hides lost+found.
	maxLayers = 499
	// maxOptions is what mount(2) takes.
	maxOptions = 4095
)

// Store makes and removes root file systems under one directory.
type Store struct {
	dir   string
	disks disks

	mu         sync.Mutex
	layers     map[string]*layer
	nextLayer  int
	containers map[string]*Root
	scratch    string // where the scratch file system is mounted; empty before Setup

	devices devices
}

// Root is the root file system of one container.
type Root struct {
	// Path is the mounted root.
	Path   string
	dir    string // the container's directory on the scratch file system
	layers []*layer
	usage  usage
}

// New returns a store that keeps everything under dir, which need not exist and must not hold a colon or a comma.
func New(dir string) *Store {
	return &Store{
		dir: dir, disks: disks{sys: "/sys", dev: "/dev"},
		layers: map[string]*layer{}, containers: map[string]*Root{}, devices: devices{users: map[string]int{}},
	}
}

// Setup mounts the scratch file system: the disk, or memory where it is nil. It is called once.
func (s *Store) Setup(ctx context.Context, scratch *agentv1.DiskAddress) (err error) {
	if err := s.makeHide(); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "scratch")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if scratch == nil {
		if err := unix.Mount("scratch", dir, "tmpfs", 0, "mode=0700"); err != nil {
			return fmt.Errorf("scratch in memory: %w", err)
		}
	} else {
		device, err := s.disks.wait(ctx, scratch)
		if err != nil {
			return fmt.Errorf("scratch: %w", err)
		}
		// discard gives the space of removed files back to the host's sparse file. noinit_itable: the kernel would zero all
		// inode tables in the background, which takes 1.6 % of the disk's size on the host and gives nothing.
		if err := unix.Mount(device, dir, "ext4", 0, "discard,noinit_itable"); err != nil {
			return fmt.Errorf("scratch: mount %s as ext4: %w", device, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scratch = dir
	return nil
}

// makeHide makes a lower directory that has nothing but a whiteout for the lost+found of the layers' ext4.
func (s *Store) makeHide() error {
	dir := filepath.Join(s.dir, "hide")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(filepath.Join(dir, lostFound), unix.S_IFCHR, 0); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("whiteout: %w", err)
	}
	return nil
}

// Mount makes the root of a container from layers, the lowest first. On error nothing is left of it.
func (s *Store) Mount(ctx context.Context, id string, layers []*agentv1.DiskAddress) (*Root, error) {
	if len(layers) > maxLayers {
		return nil, fmt.Errorf("root of %s: %d layers, at most %d can be stacked: %w", id, len(layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	scratch := s.scratch
	s.mu.Unlock()
	if scratch == "" {
		return nil, fmt.Errorf("root of %s: the sandbox has no scratch file system yet: %w", id, errdefs.ErrFailedPrecondition)
	}
	root := &Root{Path: filepath.Join(s.dir, "roots", id), dir: filepath.Join(scratch, id)}
	err := s.mount(ctx, root, layers)
	if err != nil {
		_, undo := s.drop(root, layers)
		return nil, errors.Join(fmt.Errorf("root of %s: %w", id, err), undo)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[id] = root
	return root, nil
}

func (s *Store) mount(ctx context.Context, root *Root, layers []*agentv1.DiskAddress) error {
	for _, addr := range layers {
		l, err := s.acquire(ctx, addr)
		if err != nil {
			return err
		}
		root.layers = append(root.layers, l)
	}
	upper, work := filepath.Join(root.dir, "upper"), filepath.Join(root.dir, "work")
	for _, dir := range []string{root.Path, upper, work} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := copyAttributes(upper, root.layers); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,volatile", s.lower(root.layers), upper, work)
	if len(options) > maxOptions {
		return fmt.Errorf("%d layers are more than one mount can name: %w", len(layers), errdefs.ErrInvalidArgument)
	}
	if err := unix.Mount("overlay", root.Path, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// lower is the value of lowerdir: the uppermost first.
func (s *Store) lower(layers []*layer) string {
	var dirs []string
	hide := true
	for i := len(layers) - 1; i >= 0; i-- {
		// A layer that comes twice is hidden by its upper self, and the kernel refuses to stack it.
		if !slices.Contains(dirs, layers[i].dir) {
			dirs = append(dirs, layers[i].dir)
		}
		hide = hide && !layers[i].keepsLostFound
	}
	if hide || len(dirs) == 0 {
		dirs = append([]string{filepath.Join(s.dir, "hide")}, dirs...)
	}
	return strings.Join(dirs, ":")
}

// copyAttributes gives the upper directory the owner and mode of the image's root: the overlay shows the upper's.
func copyAttributes(upper string, layers []*layer) error {
	mode, uid, gid := os.FileMode(0o755), 0, 0
	if len(layers) > 0 {
		var st unix.Stat_t
		if err := unix.Stat(layers[len(layers)-1].dir, &st); err != nil {
			return err
		}
		mode, uid, gid = os.FileMode(st.Mode&0o777), int(st.Uid), int(st.Gid)
		if st.Mode&unix.S_ISVTX != 0 {
			mode |= os.ModeSticky
		}
	}
	if err := os.Chown(upper, uid, gid); err != nil {
		return err
	}
	return os.Chmod(upper, mode)
}

// Unmount removes a container's root and what it wrote. It returns the disks that nobody uses any more.
func (s *Store) Unmount(id string) ([]*agentv1.DiskAddress, error) {
	s.mu.Lock()
	root, ok := s.containers[id]
	delete(s.containers, id)
	s.mu.Unlock()
	if !ok {
		return nil, nil
	}
	var layers []*agentv1.DiskAddress
	for _, l := range root.layers {
		layers = append(layers, l.addr)
	}
	free, err := s.drop(root, layers)
	if err != nil {
		err = fmt.Errorf("root of %s: %w", id, err)
	}
	return free, err
}

// drop undoes mount, however far it came; layers are all that were asked for.
func (s *Store) drop(root *Root, layers []*agentv1.DiskAddress) (free []*agentv1.DiskAddress, err error) {
	var errs []error
	// Detached at worst: a process that hangs in the kernel must not keep the container from being removed.
	if err := unix.Unmount(root.Path, unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		errs = append(errs, unix.Unmount(root.Path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH))
	}
	if err := os.Remove(root.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, os.RemoveAll(root.dir))
	seen := map[string]bool{}
	for i, addr := range layers {
		key, err := diskKey(addr)
		if err != nil {
			continue // refused by acquire
		}
		ok, err := s.release(addr, i < len(root.layers))
		errs = append(errs, err)
		if ok && !seen[key] {
			seen[key] = true
			free = append(free, addr)
		}
	}
	return free, errors.Join(errs...)
}

// Close unmounts all that is left, for the guest's end. It does its best.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, root := range s.containers {
		_ = unix.Unmount(root.Path, unix.MNT_DETACH)
		delete(s.containers, id)
	}
	if s.scratch == "" {
		return nil
	}
	if err := unix.Unmount(s.scratch, 0); err != nil {
		return fmt.Errorf("unmount scratch: %w", err)
	}
	s.scratch = ""
	return nil
}
