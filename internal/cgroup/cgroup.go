package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	unified = "cgroup2"
	legacy  = "cgroup"
	// removeInterval is how often the removal of a group is tried again: the kernel tells nobody when the last
	// dead process has left a v1 group.
	removeInterval = 10 * time.Millisecond
	// maxHandles bounds the descriptors that killing takes at a time.
	maxHandles = 256
)

// controllers are the v1 hierarchies that a pod's group is made on. name=systemd and the unified hierarchy of a
// hybrid host are what takes a process out of the service that started it.
func controllers() []string {
	return []string{"memory", "cpu", "cpuacct", "pids", "freezer", "blkio", "name=systemd"}
}

// Group is a cgroup with the same path on one or more hierarchies.
type Group struct {
	path string
	dirs []string
}

// Open names a group on the hierarchies that a pod of ours is put on; it need not exist. path is relative to the root of
// each hierarchy, as pistis/<id>.
func Open(path string) (*Group, error) { return openOn(path, usual) }

func openOn(path string, wanted func(options []string) bool) (*Group, error) {
	found, err := ofHost()
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", path, err)
	}
	return open(path, roots(found, wanted))
}

// roots are the mount points of the unified hierarchy and of those v1 hierarchies whose options are wanted.
func roots(found []hierarchy, wanted func(options []string) bool) []string {
	var mounts []string
	for _, h := range found {
		if (h.v2 || wanted(h.options)) && !slices.Contains(mounts, h.mount) {
			mounts = append(mounts, h.mount)
		}
	}
	return mounts
}

// usual are the hierarchies with one of the controllers of a pod's own group.
func usual(options []string) bool {
	return slices.ContainsFunc(options, func(option string) bool { return slices.Contains(controllers(), option) })
}

func open(path string, roots []string) (*Group, error) {
	clean := filepath.Clean("/" + path)
	if clean == "/" || strings.Contains(path, "..") {
		return nil, fmt.Errorf("open cgroup %q: the path must name a group below the root: %w", path, errdefs.ErrInvalidArgument)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("open cgroup %s: no cgroup hierarchy is mounted: %w", path, errdefs.ErrFailedPrecondition)
	}
	g := &Group{path: clean}
	for _, root := range roots {
		g.dirs = append(g.dirs, filepath.Join(root, clean))
	}
	return g, nil
}

// hierarchy is one tree of groups.
type hierarchy struct {
	mount string
	v2    bool
	// options of a v1 tree name its controllers.
	options []string
}

// ofHost are this host's, as they were when they were first asked for: the table of mounts has several lines for every
// pod, and the kernel takes milliseconds to write it.
var ofHost = sync.OnceValues(func() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return hierarchies(f)
})

// hierarchies finds them in a mountinfo table.
func hierarchies(r io.Reader) ([]hierarchy, error) {
	var found []hierarchy
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		mount, super := strings.Fields(left), strings.Fields(right)
		// A bind mount of some group inside a container is no root.
		if !ok || len(mount) < 6 || len(super) < 3 || mount[3] != "/" {
			continue
		}
		switch super[0] {
		case unified:
			found = append(found, hierarchy{mount: mount[4], v2: true})
		case legacy:
			found = append(found, hierarchy{mount: mount[4], options: strings.Split(super[2], ",")})
		}
	}
	return found, lines.Err()
}

// String is the path.
func (g *Group) String() string { return g.path }

// Create makes the group where it is not there. On error nothing new is left.
func (g *Group) Create() error {
	var made []string
	for _, dir := range g.dirs {
		err := os.MkdirAll(filepath.Dir(dir), 0o755)
		if err == nil {
			if err = os.Mkdir(dir, 0o755); err == nil {
				made = append(made, dir)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("create cgroup %s: %w", g.path, err)
			for _, dir := range made {
				err = errors.Join(err, unix.Rmdir(dir))
			}
			return err
		}
	}
	return nil
}

// Add moves a process into the group.
func (g *Group) Add(pid int) error {
	for _, dir := range g.dirs {
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if err != nil {
			return fmt.Errorf("add process %d to cgroup %s: %w", pid, g.path, err)
		}
	}
	return nil
}

// Pids lists the processes of the group, and of the groups below it, on any hierarchy. A group that is not there has none.
func (g *Group) Pids() ([]int, error) {
	var pids []int
	for _, dir := range g.dirs {
		if err := addPids(&pids, dir); err != nil {
			return nil, fmt.Errorf("list cgroup %s: %w", g.path, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func addPids(pids *[]int, dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP): // a threaded group, whose processes are listed above it
	case err != nil:
		return err
	}
	for field := range bytes.FieldsSeq(data) {
		if pid, err := strconv.Atoi(string(field)); err == nil && pid > 0 {
			*pids = append(*pids, pid)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		if err := addPids(pids, filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Signal sends a signal to every process in the group and below it. It is nil for a group that has none.
func (g *Group) Signal(sig unix.Signal) error {
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	for part := range slices.Chunk(pids, maxHandles) {
		handles, err := g.open(part)
		if err == nil {
			err = signalAll(handles, sig)
		}
		closeAll(handles)
		if err != nil {
			return fmt.Errorf("signal cgroup %s: %w", g.path, err)
		}
	}
	return nil
}

// Kill ends every process in the group and below it, except for those given, and waits until they have gone or ctx ends.
func (g *Group) Kill(ctx context.Context, except ...int) error {
	if len(except) == 0 {
		// At once and for good, where the kernel can (v2, 5.14 and later); the loop then only waits.
		for _, dir := range g.dirs {
			_ = writeExisting(filepath.Join(dir, "cgroup.kill"), "1")
		}
	}
	for {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(except, pid) })
		handles, err := g.open(pids)
		if err != nil {
			return err
		}
		if len(handles) == 0 {
			return nil
		}
		if err := killAll(ctx, handles); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, err)
		}
	}
}

// open opens those of the processes that live and are in the group still, now that their pids are held; not more than
// maxHandles of them.
func (g *Group) open(pids []int) ([]unix.PollFd, error) {
	var fds []unix.PollFd
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // it has ended
		} else if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("open process %d of cgroup %s: %w", pid, g.path, err)
		}
		if handle := (unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}); ended(handle) {
			unix.Close(fd)
		} else if fds = append(fds, handle); len(fds) == maxHandles {
			break
		}
	}
	still, err := g.Pids()
	living := fds[:0]
	for _, fd := range fds {
		if err == nil && memberOf(int(fd.Fd), still) && !ended(fd) {
			living = append(living, fd)
			continue
		}
		unix.Close(int(fd.Fd))
	}
	return living, err
}

// memberOf asks the kernel which pid a pidfd has now.
func memberOf(pidfd int, pids []int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte("Pid:")); ok {
			pid, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			return err == nil && slices.Contains(pids, pid)
		}
	}
	return false
}

func ended(fd unix.PollFd) bool {
	n, _ := unix.Poll([]unix.PollFd{fd}, 0)
	return n > 0
}

// killAll kills and waits; it closes the descriptors.
func killAll(ctx context.Context, fds []unix.PollFd) error {
	defer closeAll(fds)
	if err := signalAll(fds, unix.SIGKILL); err != nil {
		return err
	}
	for _, fd := range fds {
		for !ended(fd) {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("a process does not end: %w", err)
			}
			if _, err := unix.Poll([]unix.PollFd{fd}, 100); err != nil && err != unix.EINTR {
				return err
			}
		}
	}
	return nil
}

func signalAll(fds []unix.PollFd, sig unix.Signal) error {
	for _, fd := range fds {
		if err := unix.PidfdSendSignal(int(fd.Fd), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func closeAll(fds []unix.PollFd) {
	for _, fd := range fds {
		unix.Close(int(fd.Fd))
	}
}

// writeExisting writes to a file of the kernel's, and makes none.
func writeExisting(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Remove removes the group, which must be empty. It tries until ctx ends: dead processes leave a group a moment
// after their end. It is idempotent; parents stay.
func (g *Group) Remove(ctx context.Context) error {
	tick := time.NewTicker(removeInterval)
	defer tick.Stop()
	for {
		err := g.remove()
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (g *Group) remove() error {
	var errs []error
	for _, dir := range g.dirs {
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %s: %w", g.path, dir, err))
		}
	}
	return errors.Join(errs...)
}
