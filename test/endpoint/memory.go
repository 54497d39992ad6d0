package endpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// marker is in the environment of a daemon, and so of what it starts.
const marker = "PISTIS_ENDPOINT="

// Helpers are the processes that the daemon runs beside itself: shims, monitors. A pod's own processes are not among them,
// nor is a pause process: those have a PID namespace of their own or the environment of their image.
func (e *Endpoint) Helpers() ([]int, error) {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == e.PID() || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", entry.Name())
		// One that ends meanwhile is none.
		ns, _ := os.Readlink(filepath.Join(dir, "ns", "pid"))
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if ns == own && (bytes.Contains(environment, []byte(marker+e.Name+"\x00")) || bytes.Contains(command, []byte(e.Scope.State+"/"))) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// PSS is the proportional set size of processes in MB (10^6 bytes). Those that have ended count as nothing.
func PSS(pids ...int) (float64, error) {
	sum := 0.0
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(b)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
				kib, err := strconv.ParseFloat(fields[1], 64)
				if err != nil {
					return 0, err
				}
				sum += kib * 1024 / 1e6
			}
		}
	}
	return sum, nil
}
