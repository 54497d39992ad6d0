package cgroup

import (
	"path"
	"path/filepath"
	"strings"
)

// Path is that of the group name below parent, relative to each hierarchy's root. A parent that systemd names
// (a-b.slice) lies where systemd puts it (a.slice/a-b.slice).
func Path(parent, name string) string {
	if strings.HasSuffix(parent, ".slice") && !strings.Contains(parent, "/") {
		parent = expandSlice(parent)
	}
	return strings.TrimPrefix(path.Join("/", parent, name), "/")
}

func expandSlice(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	var dirs []string
	for i, c := range name {
		if c == '-' {
			dirs = append(dirs, name[:i]+".slice")
		}
	}
	return filepath.Join(append(dirs, slice)...)
}
