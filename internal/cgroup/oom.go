package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// OOMKills is how many processes of the group the kernel's OOM killer has ended; 0 where there is no memory controller, or
// no group. With cgroup v1 groups below this one are not counted.
func (g *Group) OOMKills() uint64 {
	var kills uint64
	for _, dir := range g.dirs {
		for _, name := range []string{"memory.events", "memory.oom_control"} { // v2, v1
			if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				kills = max(kills, parseOOMKills(data))
			}
		}
	}
	return kills
}

// OOMKillsAround is OOMKills of the groups whose memory this one uses: with cgroup v2 a group without a memory controller uses that of
// the nearest above it that has one.
func (g *Group) OOMKillsAround() uint64 {
	var kills uint64
	for _, dir := range g.dirs {
		for ; isGroup(dir); dir = filepath.Dir(dir) {
			if data, err := os.ReadFile(filepath.Join(dir, "memory.events")); err == nil {
				kills = max(kills, parseOOMKills(data))
				break
			}
		}
	}
	return max(kills, g.OOMKills())
}

func isGroup(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "cgroup.procs"))
	return err == nil
}

func parseOOMKills(data []byte) uint64 {
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
			return n
		}
	}
	return 0
}
