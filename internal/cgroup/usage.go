package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

// Reader reads what groups use. It knows where the host's controllers are, and opens nothing that it keeps; it may be
// used from any goroutine.
type Reader struct {
	// v2 is the unified hierarchy where it has the controllers. Otherwise each controller has a mount of its own.
	v2                                string
	cpu, cpuacct, memory, pids, blkio string
}

// Unified is a reader for a host, or guest, that has nothing but cgroup v2, mounted at root.
func Unified(root string) *Reader { return &Reader{v2: root} }

// NewReader finds the host's hierarchies.
func NewReader() (*Reader, error) {
	found, err := ofHost()
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	return newReader(found)
}

func newReader(found []hierarchy) (*Reader, error) {
	with := func(controller string) string {
		i := slices.IndexFunc(found, func(h hierarchy) bool { return slices.Contains(h.options, controller) })
		if i < 0 {
			return ""
		}
		return found[i].mount
	}
	r := &Reader{cpu: with("cpu"), cpuacct: with("cpuacct"), memory: with("memory"), pids: with("pids"), blkio: with("blkio")}
	if r.memory == "" {
		i := slices.IndexFunc(found, func(h hierarchy) bool { return h.v2 })
		if i < 0 {
			return nil, fmt.Errorf("cgroups: no hierarchy with the memory controller is mounted: %w", errdefs.ErrFailedPrecondition)
		}
		r.v2 = found[i].mount
	}
	return r, nil
}

// V2: the host's controllers are on the unified hierarchy.
func (r *Reader) V2() bool { return r.v2 != "" }

// Usage of a group, whose path is relative to each hierarchy's root. NotFound when it has gone.
func (r *Reader) Usage(path string) (task.ContainerStats, error) {
	var (
		u task.ContainerStats
		f files
	)
	if err := r.total(&f, path, &u.CPU, &u.Memory); err != nil {
		return u, err
	}
	dir := filepath.Join(r.v2, path)
	if r.V2() {
		u.IO = unifiedIO(&f, dir)
	} else {
		u.IO = r.legacyIO(&f, path)
		dir = filepath.Join(r.pids, path)
	}
	f.tasks(&u, dir)
	return u, nil
}

// Total is what a group and all those below it use of processors and memory. NotFound when it has gone.
func (r *Reader) Total(path string) (cpu task.CPU, memory task.Memory, err error) {
	var f files
	err = r.total(&f, path, &cpu, &memory)
	return cpu, memory, err
}

// IOPressure of a group and all those below it is nil where the kernel does not measure it.
func (r *Reader) IOPressure(path string) *task.PSI {
	if !r.V2() {
		return nil
	}
	var f files
	return f.pressure(filepath.Join(r.v2, path), "io.pressure")
}

func (r *Reader) total(f *files, path string, cpu *task.CPU, memory *task.Memory) (err error) {
	if r.V2() {
		err = unifiedTotal(f, filepath.Join(r.v2, path), cpu, memory)
	} else {
		err = r.legacyTotal(f, path, cpu, memory)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	return nil
}

// maxFile bounds what is read of one control file.
const maxFile = 1 << 20

// files reads control files one after another, each in three system calls, into one buffer. A list of statistics reads
// more than a dozen for every container.
type files struct{ buf []byte }

// read returns the content of a file; it is good until the next call.
func (f *files) read(dir, name string) ([]byte, error) {
	fd, err := unix.Open(dir+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir + "/" + name, Err: err}
	}
	defer unix.Close(fd)
	if f.buf == nil {
		f.buf = make([]byte, 8<<10)
	}
	for n := 0; ; {
		if n == len(f.buf) {
			if n >= maxFile {
				return f.buf, nil
			}
			f.buf = append(f.buf, make([]byte, n)...)
		}
		got, err := unix.Read(fd, f.buf[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: dir + "/" + name, Err: err}
		case got == 0:
			return f.buf[:n], nil
		default:
			n += got
		}
	}
}

// number is 0 where there is no such file, or no limit.
func (f *files) number(dir, name string) uint64 {
	n, _ := f.known(dir, name)
	return n
}

// known reports whether there is such a number.
func (f *files) known(dir, name string) (n uint64, ok bool) {
	data, err := f.read(dir, name)
	if err != nil {
		return 0, false
	}
	return parseUint(bytes.TrimSpace(data))
}

// maybe is nil where there is no such number.
func (f *files) maybe(dir, name string) *uint64 {
	if n, ok := f.known(dir, name); ok {
		return &n
	}
	return nil
}

// pressure is nil where the kernel does not measure it.
func (f *files) pressure(dir, name string) *task.PSI {
	data, err := f.read(dir, name)
	if err != nil {
		return nil
	}
	return ParsePressure(string(data))
}

// tasks fills in how many tasks and processes there are in a group, and what its first process may open.
func (f *files) tasks(u *task.ContainerStats, dir string) {
	u.Pids, u.PidsLimit = f.number(dir, "pids.current"), f.number(dir, "pids.max")
	first := 0
	u.Processes, first = f.processes(dir, 0)
	if first > 0 {
		u.OpenFiles = f.openFiles(first)
	}
}

// maxDepth bounds how deep below a container's group its own groups are looked for.
const maxDepth = 8

// processes counts those of the group and of the groups below, and returns the first one's pid.
func (f *files) processes(dir string, depth int) (n uint64, first int) {
	data, err := f.read(dir, "cgroup.procs")
	if err == nil {
		for line := range bytes.Lines(data) {
			if pid, ok := parseUint(bytes.TrimSpace(line)); ok {
				n++
				if first == 0 || int(pid) < first {
					first = int(pid)
				}
			}
		}
	}
	// A directory of cgroupfs has two links and one for each group below.
	var st unix.Stat_t
	if depth == maxDepth || unix.Stat(dir, &st) != nil || st.Nlink == 2 {
		return n, first
	}
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() {
			more, pid := f.processes(filepath.Join(dir, entry.Name()), depth+1)
			if n += more; first == 0 {
				first = pid
			}
		}
	}
	return n, first
}

// openFiles is the soft limit of a process's open files; nil where it has gone or has none.
func (f *files) openFiles(pid int) *uint64 {
	data, err := f.read("/proc/"+strconv.Itoa(pid), "limits")
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(data) {
		rest, ok := bytes.CutPrefix(line, []byte("Max open files"))
		if fields := bytes.Fields(rest); ok && len(fields) > 0 {
			if n, ok := parseUint(fields[0]); ok {
				return &n
			}
		}
	}
	return nil
}

// unlimited is below what v1 shows for a group without a limit: the largest multiple of a page in 63 bits.
const unlimited = 1 << 62

// workingSet is what cannot be reclaimed easily, as the kubelet's eviction understands it.
func workingSet(m *task.Memory, inactiveFile, limit uint64) {
	m.WorkingSet = m.Usage - min(m.Usage, inactiveFile)
	if limit > 0 && limit < unlimited {
		m.Available = limit - min(limit, m.WorkingSet)
	}
}
