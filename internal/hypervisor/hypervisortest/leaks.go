package hypervisortest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// noLeaks returns a check that since this call no descriptor was left open and no child left alive.
func noLeaks(t testing.TB) func() {
	t.Helper()
	files, children := openFiles(t), childProcesses(t)
	return func() {
		t.Helper()
		for fd, target := range openFiles(t) {
			if files[fd] != target {
				t.Errorf("descriptor %s of %s was left open", fd, target)
			}
		}
		for _, child := range childProcesses(t) {
			if !slices.Contains(children, child) {
				t.Errorf("process %s was left alive", child)
			}
		}
	}
}

// openFiles are the descriptors of this process but those that the Go runtime opens when it likes.
func openFiles(t testing.TB) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || strings.HasSuffix(target, "[eventpoll]") || strings.HasSuffix(target, "[eventfd]") {
			continue
		}
		files[e.Name()] = target
	}
	return files
}

// childProcesses are this process's children, dead ones that were not reaped too.
func childProcesses(t testing.TB) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var children []string
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name is in parentheses and may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			children = append(children, fmt.Sprint(filepath.Base(filepath.Dir(path))))
		}
	}
	return children
}
