package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
			if value != defaults[key] && !derived[family+"/"+key] {
				set[sysctlName(filepath.Join(dir, key))] = value
			}
		}
	}
	return set, nil
}

// namespaceSysctls reads all settings of the namespace but those of single interfaces.
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
			set[sysctlName(filepath.Join(path, key))] = value
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the namespace's kernel settings: %w", err)
	}
	return set, nil
}

// readSettings reads the writable files of a directory; the kernel refuses to show some of them. No directory is no
// settings.
func readSettings(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read kernel settings: %w", err)
	}
	values := make(map[string]string, len(entries))
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		info, err := entry.Info()
		if err != nil || info.Mode().Perm()&0o600 != 0o600 {
			continue
		}
		if value, err := os.ReadFile(filepath.Join(dir, entry.Name())); err == nil {
			values[entry.Name()] = strings.TrimSpace(string(value))
		}
	}
	return values, nil
}

// sysctlName writes the path as sysctl(8) does: dots for slashes, and slashes for the dots of an interface's name.
func sysctlName(path string) string {
	name := strings.TrimPrefix(path, "/proc/sys/")
	return strings.NewReplacer("/", ".", ".", "/").Replace(name)
}
