package main

import (
	"bufio"
	"context"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// guestRAM is the least size of a mapping that is taken for a guest's memory.
const guestRAM = 64 << 20

func keys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// phases reads the phases of a pod's start from its verbose status: keys "phase.NAME", values durations.
func phases(info map[string]string) map[string]time.Duration {
	found := map[string]time.Duration{}
	for key, value := range info {
		if name, ok := strings.CutPrefix(key, "phase."); ok {
			if d, err := time.ParseDuration(value); err == nil {
				found[name] = d
			}
		}
	}
	return found
}

// awaitLog waits until a log file of ours has at least size bytes.
func (b *bench) awaitLog(ctx context.Context, name string, size int64) error {
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		if info, err := os.Stat(filepath.Join(b.logs, name)); err == nil && info.Size() >= size {
			tick.Stop()
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// throughput compares what a container writes into its log with the rate of a pipe inside the same guest.
func (b *bench) throughput(ctx context.Context, megabytes int) error {
	const line = 100
	lines := megabytes << 20 / line
	write := fmt.Sprintf("yes %s | head -n %d", strings.Repeat("x", line-1), lines)
	pipe, err := b.timeContainer(ctx, "pipe", write+" | cat > /dev/null")
	if err != nil {
		return err
	}
	log, err := b.timeContainer(ctx, "log", write)
	if err != nil {
		return err
	}
	rate := func(d time.Duration) float64 { return float64(megabytes) / d.Seconds() }
	fmt.Printf("%-34s %10.1f MB/s\n%-34s %10.1f MB/s\n%-34s %10.2f of the guest's pipe\n",
		"guest's own pipe, 100-byte lines", rate(pipe), "container log, end to end", rate(log), "ratio", pipe.Seconds()/log.Seconds())
	return nil
}

// timeContainer runs a script in the first pod and returns the time between its start and its end.
func (b *bench) timeContainer(ctx context.Context, name, script string) (time.Duration, error) {
	id, err := b.create(ctx, b.pods[0], name, script)
	if err != nil {
		return 0, err
	}
	if _, err := b.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id}); err != nil {
		return 0, err
	}
	for {
		resp, err := b.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return 0, err
		}
		s := resp.Status
		if s.State == runtime.ContainerState_CONTAINER_EXITED {
			if s.ExitCode != 0 {
				return 0, fmt.Errorf("%s: exit code %d: %s", name, s.ExitCode, s.Message)
			}
			return time.Duration(s.FinishedAt - s.StartedAt), nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// pids of the processes that a pod has on the host.
func (p pod) pids() (shim, vmm int) {
	shim, _ = strconv.Atoi(p.info["shimPid"])
	vmm, _ = strconv.Atoi(p.info["vmmPid"])
	return shim, vmm
}

// memory prints the proportional set size of what serves the pods, guest memory apart.
func (b *bench) memory(daemonPID int) error {
	var shims, vmms, guests []float64
	for _, p := range b.pods {
		shim, vmm := p.pids()
		own, _, err := pss(shim)
		if err != nil {
			return err
		}
		overhead, ram, err := pss(vmm)
		if err != nil {
			return err
		}
		shims, vmms, guests = append(shims, own), append(vmms, overhead), append(guests, ram)
	}
	fmt.Printf("\nmemory with %d pods (PSS)\n", len(b.pods))
	row("shim", "MiB", shims)
	row("VMM without guest memory", "MiB", vmms)
	row("guest memory in use", "MiB", guests)
	if daemonPID != 0 {
		own, _, err := pss(daemonPID)
		if err != nil {
			return err
		}
		row("daemon", "MiB", []float64{own})
	}
	return nil
}

// pss sums a process's proportional set size in MiB: mappings of a guest's memory apart from the others.
func pss(pid int) (own, guest float64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	ram := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if from, to, ok := strings.Cut(fields[0], "-"); ok && !strings.HasSuffix(fields[0], ":") {
			start, _ := strconv.ParseUint(from, 16, 64)
			end, _ := strconv.ParseUint(to, 16, 64)
			// A driver may name the mapping; an anonymous one of this size is nothing else in a VMM.
			ram = end-start >= guestRAM && (len(fields) < 6 || strings.Contains(fields[len(fields)-1], "memfd") || strings.Contains(lines.Text(), "/dev/zero"))
			continue
		}
		if fields[0] == "Pss:" && len(fields) > 1 {
			kib, _ := strconv.ParseFloat(fields[1], 64)
			if ram {
				guest += kib / 1024
			} else {
				own += kib / 1024
			}
		}
	}
	return own, guest, nil
}

// idle prints the CPU that daemon and shims use while nothing happens.
func (b *bench) idle(ctx context.Context, daemonPID int) error {
	const span = 10 * time.Second
	watched := map[string][]int{}
	for _, p := range b.pods {
		shim, _ := p.pids()
		watched["shim"] = append(watched["shim"], shim)
	}
	if daemonPID != 0 {
		watched["daemon"] = []int{daemonPID}
	}
	before := map[int]float64{}
	for _, pids := range watched {
		for _, pid := range pids {
			before[pid] = cpuTicks(pid)
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(span):
	}
	fmt.Printf("\nCPU of idle pods over %v\n", span)
	for name, pids := range watched {
		var used []float64
		for _, pid := range pids {
			used = append(used, (cpuTicks(pid)-before[pid])/span.Seconds()) // a tick is 10 ms: percent of a core
		}
		row(name, "% of a core", used)
	}
	fmt.Println()
	return nil
}

// cpuTicks is the user and system time of a process in clock ticks; 0 when it has gone.
func cpuTicks(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The command's name, in parentheses, may hold anything.
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return user + system
}
