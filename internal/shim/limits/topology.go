package limits

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// topology is what the host has.
type topology struct {
	cpus, nodes []int // online processors and memory nodes
}

// hostTopology reads the host's. A host without memory nodes has the node 0.
func hostTopology() (topology, error) {
	read := func(path string) ([]int, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		return parseList(string(text))
	}
	cpus, err := read("/sys/devices/system/cpu/online")
	if err != nil {
		return topology{}, fmt.Errorf("processors of the host: %w", err)
	}
	nodes, err := read("/sys/devices/system/node/online")
	if errors.Is(err, fs.ErrNotExist) {
		nodes, err = []int{0}, nil
	}
	if err != nil {
		return topology{}, fmt.Errorf("memory nodes of the host: %w", err)
	}
	return topology{cpus: cpus, nodes: nodes}, nil
}

// parseCPUs reads a list of processors, which the host must have.
func (t topology) parseCPUs(list string) ([]int, error) {
	cpus, err := parseList(list)
	if err != nil {
		return nil, err
	}
	for _, cpu := range cpus {
		if !slices.Contains(t.cpus, cpu) {
			return nil, fmt.Errorf("this host has the processors %s: %w", formatList(t.cpus), errdefs.ErrInvalidArgument)
		}
	}
	return cpus, nil
}

// checkNodes takes a list of all memory nodes, which confines nothing, and an empty one.
func (t topology) checkNodes(list string) error {
	if list == "" {
		return nil
	}
	nodes, err := parseList(list)
	if err != nil {
		return err
	}
	for _, node := range t.nodes {
		if !slices.Contains(nodes, node) {
			return fmt.Errorf("the memory of a VM pod cannot be confined to some of the host's nodes; "+
				"leave it empty, which on a Kubernetes node means the kubelet's memoryManagerPolicy None: %w", errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// confine lets a process, all threads that it has and those that it will have, run on some processors of the host alone.
func confine(pid int, cpus []int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	// A thread that begins meanwhile has the set of the one that made it: until all have it, look again.
	for done := map[int]bool{}; ; {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has ended
		} else if err != nil {
			return fmt.Errorf("threads of process %d: %w", pid, err)
		}
		more := false
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil || done[tid] {
				continue
			}
			if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("confine process %d to the processors %s: %w", pid, formatList(cpus), err)
			}
			done[tid], more = true, true
		}
		if !more {
			return nil
		}
	}
}
