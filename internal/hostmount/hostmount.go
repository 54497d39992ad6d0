// Package hostmount reads the host's table of mounts: what is mounted below a directory, and of which of the kubelet's volumes a
// path is a part.
//
// It owns nothing and imports nothing of ours.
package hostmount

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountLine is a line of mountinfo.
type mountLine struct {
	device  string // major:minor
	root    string // the directory of the file system that is mounted
	point   string
	options string // of this mount, which a bind mount has from what it is of
	fstype  string
}

// readMounts lists the mounts of this process's namespace, in their order.
func readMounts() ([]mountLine, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

// maxMountLine bounds a line: an overlay names all of its layers there.
const maxMountLine = 1 << 20

func parseMounts(r io.Reader) ([]mountLine, error) {
	var all []mountLine
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxMountLine)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		separator := slices.Index(fields, "-")
		if separator < 6 || len(fields) < separator+2 {
			return nil, fmt.Errorf("mountinfo: %.200q is no line of it", lines.Text())
		}
		all = append(all, mountLine{device: fields[2], root: unescape(fields[3]), point: unescape(fields[4]), options: fields[5], fstype: fields[separator+1]})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	return all, nil
}

// unescape takes back what the kernel does to blanks in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Below says whether something is mounted below a path of the host.
func Below(path string) (bool, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	mounts, err := readMounts()
	prefix := strings.TrimSuffix(real, "/") + "/"
	return slices.ContainsFunc(mounts, func(m mountLine) bool { return strings.HasPrefix(m.point, prefix) && m.point != real }), err
}

// Memory is a volume of the kubelet's that is in memory: the host's tmpfs says how it is to be, and the guest makes one of
// its own.
type Memory struct {
	// Volume names it, the same for all paths in it.
	Volume   string
	Size     uint64
	Mode     uint32
	UID, GID uint32
	// Path is what of it was asked for, below its root; empty is all.
	Path string
}

// emptyDirs is in the path of each of the kubelet's emptyDir volumes.
const emptyDirs = "/volumes/kubernetes.io~empty-dir/"

// FindMemory says whether a path is an emptyDir volume of medium Memory, or a subPath of one as the kubelet prepares it,
// which is a mount of a part of the same file system. It returns nil for everything else.
func FindMemory(path string) (*Memory, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		return nil, nil // what is not there is refused where it is shared
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	// Of several mounts at one place the last is seen.
	var asked, volume *mountLine
	for i, m := range mounts {
		if m.point == path && m.fstype == "tmpfs" {
			asked = &mounts[i]
		}
	}
	for i, m := range mounts {
		dir, _ := filepath.Split(m.point)
		if asked != nil && m.device == asked.device && m.root == "/" && strings.HasSuffix(dir, emptyDirs) {
			volume = &mounts[i]
		}
	}
	if volume == nil {
		return nil, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(volume.point, &st); err != nil {
		return nil, err
	}
	return &Memory{
		Volume: "memory-" + strings.ReplaceAll(volume.device, ":", "-"), Size: fs.Blocks * uint64(fs.Bsize),
		Mode: uint32(st.Mode) & 0o7777, UID: st.Uid, GID: st.Gid, Path: strings.TrimPrefix(asked.root, "/"),
	}, nil
}

// Part is what a subPath of an emptyDir volume names.
type Part struct {
	// Volume is the volume's path, Path the part's below it.
	Volume, Path string
}

// FindPart says of what volume a path is a part, and nil where it is of none: a subPath of an emptyDir volume on disk, as the
// kubelet prepares it, which is a mount of a directory or a file of it. Such a volume is the pod's alone, so that all of it may
// be shared with the pod's guest.
func FindPart(path string) (*Part, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, nil // what is not there is refused where it is shared
	}
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var asked *mountLine
	for i, m := range mounts { // of several mounts at one place the last is seen
		if m.point == path {
			asked = &mounts[i]
		}
	}
	if asked == nil {
		return nil, nil
	}
	before, rest, _ := strings.Cut(asked.root, emptyDirs)
	name, part, _ := strings.Cut(rest, "/")
	if part == "" {
		return nil, nil
	}
	volume := before + emptyDirs + name // in its file system
	for _, m := range mounts {
		below, ok := strings.CutPrefix(volume, strings.TrimSuffix(m.root, "/")+"/")
		// The file system may be mounted elsewhere in another way: read-only, for one, as hosts do whose system is an image.
		if !ok || m.device != asked.device || m.options != asked.options {
			continue
		}
		found := &Part{Volume: filepath.Join(m.point, below), Path: part}
		if sameFile(filepath.Join(found.Volume, part), path) {
			return found, nil
		}
	}
	return nil, nil
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
