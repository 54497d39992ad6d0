// Package leak finds what a daemon under test left on the host: processes, mounts, network devices and
// namespaces, cgroups, nftables tables, sockets and files. It only looks; it owns and removes nothing.
package leak

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/pistis-run/pistis/internal/rtnl"
)

// Scope is what belongs to one daemon.
type Scope struct {
	// Root and State are the daemon's directories.
	Root, State string
	// Bridge is the name of its built-in bridge.
	Bridge string
	// Cgroup is a substring of the path of every cgroup that it makes.
	Cgroup string
}

// Find returns a line for everything that is there and should not be once all pods were removed and the daemon
// has stopped. Files that the daemon keeps by design (images, layers, allocation records, its bridge) do not count.
func Find(s Scope) ([]string, error) {
	var found []string
	for _, look := range []func(Scope) ([]string, error){processes, mounts, links, cgroups, files, addresses} {
		lines, err := look(s)
		if err != nil {
			return nil, err
		}
		found = append(found, lines...)
	}
	slices.Sort(found)
	return found, nil
}

// Tables returns the names of the nftables tables that belong to the bridge.
func Tables(s Scope) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range tables {
		if strings.Contains(t.Name, s.Bridge) {
			names = append(names, "table: "+t.Name)
		}
	}
	return names, nil
}

func processes(s Scope) ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that ends meanwhile is no leak: read errors are answers.
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		cgroup, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil {
			continue
		}
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if zombieOfInit(e.Name()) {
			continue // it has ended; reaping it is not the daemon's business
		}
		inState := s.State != "" && (bytes.Contains(cmdline, []byte(s.State)) || strings.HasPrefix(cwd, s.State))
		if inState || (s.Cgroup != "" && bytes.Contains(cgroup, []byte(s.Cgroup))) {
			argv := strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
			found = append(found, fmt.Sprintf("process: %d %.160s", pid, argv))
		}
	}
	return found, nil
}

// zombieOfInit tells whether a process has ended and only waits for the host's init to notice.
func zombieOfInit(pid string) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	return len(fields) > 1 && fields[0] == "Z" && fields[1] == "1"
}

func mounts(s Scope) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		// The directories of pinned namespaces are mounts as long as the daemon's directories are there.
		pins := []string{filepath.Join(s.State, "netns"), filepath.Join(s.State, "host")}
		if point := fields[4]; within(point, s.Root) || within(point, s.State) && !slices.Contains(pins, point) {
			found = append(found, "mount: "+point)
		}
	}
	return found, nil
}

// within tells whether path is below dir. The directory itself may be a mount of the administrator's.
func within(path, dir string) bool { return dir != "" && strings.HasPrefix(path, dir+"/") }

func links(s Scope) ([]string, error) {
	if s.Bridge == "" {
		return nil, nil
	}
	all, err := rtnl.Dump(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	bridge := -1
	for _, l := range all {
		if l.Attrs().Name == s.Bridge {
			bridge = l.Attrs().Index
		}
	}
	var found []string
	for _, l := range all {
		if bridge >= 0 && l.Attrs().MasterIndex == bridge {
			found = append(found, "network device: "+l.Attrs().Name)
		}
	}
	return found, nil
}

func cgroups(s Scope) ([]string, error) {
	if s.Cgroup == "" {
		return nil, nil
	}
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // cgroups come and go while they are walked
		}
		if d.IsDir() && strings.Contains(path, s.Cgroup) {
			// The daemon's own parent may stay, what is in it may not.
			if sub, err := os.ReadDir(path); err == nil && !slices.ContainsFunc(sub, fs.DirEntry.IsDir) {
				if strings.Contains(filepath.Dir(path), s.Cgroup) {
					found = append(found, "cgroup: "+path)
				}
			}
		}
		return nil
	})
	return found, err
}

// files looks where the daemon keeps what lives as long as a pod or a container.
func files(s Scope) ([]string, error) {
	var found []string
	host, err := filepath.Glob(filepath.Join(s.State, "host", "*")) // a directory for each handler
	if err != nil {
		return nil, err
	}
	for _, dir := range append(host,
		filepath.Join(s.State, "pods"), filepath.Join(s.State, "netns"), filepath.Join(s.State, "bundles"),
		filepath.Join(s.Root, "sandboxes"), filepath.Join(s.Root, "containers"), filepath.Join(s.Root, "scratch"),
		filepath.Join(s.Root, "network", "cni", "pods"),
	) {
		entries, err := os.ReadDir(dir)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			found = append(found, "file: "+filepath.Join(dir, e.Name()))
		}
	}
	return found, nil
}

// addresses are those that the bridge's ledger still gives to pods.
func addresses(s Scope) ([]string, error) {
	if s.Root == "" || s.Bridge == "" {
		return nil, nil
	}
	data, err := os.ReadFile(filepath.Join(s.Root, "network", "bridge", s.Bridge+".json"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ledger struct {
		Pods map[string]json.RawMessage `json:"pods"`
	}
	if err := json.Unmarshal(data, &ledger); err != nil {
		return nil, fmt.Errorf("address ledger: %w", err)
	}
	var found []string
	for id, pod := range ledger.Pods {
		found = append(found, fmt.Sprintf("address: pod %s: %s", id, pod))
	}
	return found, nil
}
