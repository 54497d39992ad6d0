package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// procNet holds the settings of the network namespace of the calling thread.
const procNet = "/proc/sys/net"

// derived settings of an interface are the kernel's own doing.
var derived = map[string]bool{"ipv6/mtu": true, "ipv6/stable_secret": true}

// interfaceSysctls reads what was set on the interface: what differs from the default of its namespace.
func interfaceSysctls(name string) (map[string]string, error) {
	set := map[string]string{}
	for _, family := range []string{"ipv4", "ipv6"} {
		dir := filepath.Join(procNet, family, "conf", name)
		defaults, err := readSettings(filepath.Join(procNet, family, "conf", "default"))
		if err != nil {
			return nil, err
		}
		values, err := readSettings(dir)
		if err != nil {
			return nil, err
		}
		for key, value := range values {
			if value != defaults[key] && !derived[family+"/"+key] && writable(filepath.Join(dir, key)) {
				set[sysctlName(filepath.Join(dir, key))] = value
			}
		}
	}
	return set, nil
}

// namespaceSysctls reads all settings of the namespace but those of single interfaces, by path.
func namespaceSysctls() (map[string]string, error) {
	set := map[string]string{}
	err := filepath.WalkDir(procNet, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !entry.IsDir() {
			return nil
		}
		parent := filepath.Base(filepath.Dir(path))
		if parent == "neigh" || parent == "conf" && entry.Name() != "all" && entry.Name() != "default" {
			return fs.SkipDir
		}
		values, err := readSettings(path)
		for key, value := range values {
			set[filepath.Join(path, key)] = value
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the namespace's kernel settings: %w", err)
	}
	return set, nil
}

// readSettings reads the files of a directory but those that the kernel refuses to show. No directory is no settings.
func readSettings(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read kernel settings: %w", err)
	}
	values := make(map[string]string, len(entries))
	var buf [4096]byte
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		if value, ok := readSetting(filepath.Join(dir, entry.Name()), buf[:]); ok {
			values[entry.Name()] = value
		}
	}
	return values, nil
}

// readSetting does with three system calls what os.ReadFile needs more for: there are hundreds of settings.
func readSetting(path string, buf []byte) (string, bool) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "", false
	}
	return strings.TrimSpace(string(buf[:n])), true
}

// writable says whether the file is a setting and not only a report.
func writable(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Perm()&0o200 != 0
}

// sysctlName writes the path as sysctl(8) does: dots for slashes, and slashes for the dots of an interface's name.
func sysctlName(path string) string {
	name := strings.TrimPrefix(path, "/proc/sys/")
	return strings.NewReplacer("/", ".", ".", "/").Replace(name)
}
