package hostpod

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// clamp keeps specs within what this daemon can give. Inside a container or a restricted service it has less than root
// usually has, and a runtime would fail with an error that names none of this.
type clamp struct {
	bounding []string
	// minOOMScore is the lowest score that processes can be given.
	minOOMScore int
	// hugetlb, swap, unified: the host's cgroups can limit these.
	hugetlb, swap, unified bool

	log  *slog.Logger
	mu   sync.Mutex
	said map[string]bool // what was logged already: it does not change
}

func newClamp(log *slog.Logger) (*clamp, error) {
	own, err := capability.NewPid2(0)
	if err == nil {
		err = own.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("own capabilities: %w", err)
	}
	c := &clamp{minOOMScore: -1000, log: log, said: map[string]bool{}}
	for _, known := range capability.ListKnown() {
		if own.Get(capability.BOUNDING, known) {
			c.bounding = append(c.bounding, "CAP_"+strings.ToUpper(known.String()))
		}
	}
	if !own.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE) {
		if c.minOOMScore, err = ownOOMScore(); err != nil {
			return nil, err
		}
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	c.unified = err == nil
	if c.unified {
		c.hugetlb = slices.Contains(strings.Fields(string(controllers)), "hugetlb")
		c.swap = true
		return c, nil
	}
	c.hugetlb = exists("/sys/fs/cgroup/hugetlb")
	c.swap = exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	return c, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func ownOOMScore() (int, error) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("own OOM score: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// apply takes out of a spec what this daemon does not have itself, and refuses limits that would not hold.
func (c *clamp) apply(spec *specs.Spec) error {
	if caps := spec.Process.Capabilities; caps != nil {
		for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted, &caps.Inheritable, &caps.Ambient} {
			*set = c.capabilities(*set)
		}
	}
	if score := spec.Process.OOMScoreAdj; score != nil && *score < c.minOOMScore {
		c.once("oom", "this daemon may not lower OOM scores (CAP_SYS_RESOURCE is missing); pods that ask for less get its own", "score", c.minOOMScore)
		spec.Process.OOMScoreAdj = &c.minOOMScore
	}
	return c.resources(spec.Linux.Resources)
}

func (c *clamp) capabilities(set []string) []string {
	return slices.DeleteFunc(slices.Clone(set), func(name string) bool {
		if slices.Contains(c.bounding, name) {
			return false
		}
		c.once(name, "this daemon does not have a capability itself; containers that ask for it go without", "capability", name)
		return true
	})
}

// once logs what concerns the host and not one pod.
func (c *clamp) once(key, message string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.said[key] {
		c.said[key] = true
		c.log.Warn(message, args...)
	}
}

// resources refuses limits that this host's cgroups cannot hold. The kubelet sends limits of zero, and of swap as much
// as of memory, also where there is nothing to limit: those are kept by doing nothing.
func (c *clamp) resources(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if len(r.Unified) > 0 && !c.unified {
		return fmt.Errorf("unified cgroup settings need cgroup v2, and this host has v1: %w", errdefs.ErrInvalidArgument)
	}
	if !c.hugetlb {
		for _, limit := range r.HugepageLimits {
			if limit.Limit > 0 {
				return fmt.Errorf("limit of %s huge pages: this host has no hugetlb cgroup controller: %w", limit.Pagesize, errdefs.ErrFailedPrecondition)
			}
		}
		r.HugepageLimits = nil
	}
	if m := r.Memory; m != nil && m.Swap != nil && !c.swap {
		if m.Limit == nil || *m.Swap > *m.Limit {
			return fmt.Errorf("swap limit: this host's memory controller does not count swap (boot it with swapaccount=1): %w", errdefs.ErrFailedPrecondition)
		}
		without := *m
		without.Swap = nil
		r.Memory = &without
	}
	return nil
}

// list, note and unnote keep a set of names as empty files in a directory.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, nil
}

func note(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o600)
}

func unnote(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
