package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

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

// throughput compares what a container writes into its log with the rate of a pipe inside the same guest, by turns.
func (b *bench) throughput(ctx context.Context, megabytes, repeat int) error {
	const line = 100
	write := fmt.Sprintf("yes %s | head -n %d", strings.Repeat("x", line-1), megabytes<<20/line)
	var pipes, logs, ratios []float64
	for i := range repeat {
		pipe, err := b.timeContainer(ctx, fmt.Sprint("pipe", i), write+" | cat > /dev/null")
		if err != nil {
			return err
		}
		log, err := b.timeContainer(ctx, fmt.Sprint("log", i), write)
		if err != nil {
			return err
		}
		pipes, logs = append(pipes, float64(megabytes)/pipe.Seconds()), append(logs, float64(megabytes)/log.Seconds())
		ratios = append(ratios, pipe.Seconds()/log.Seconds())
	}
	fmt.Println("\nlines of 100 bytes")
	row("a pipe inside the guest", "MiB/s", pipes)
	row("container log, end to end", "MiB/s", logs)
	row("ratio", "", ratios)
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
	var shims, vmms, code, guests []float64
	for _, p := range b.pods {
		shim, vmm := p.pids()
		own, err := pss(shim, 0)
		if err != nil {
			return err
		}
		ram, err := strconv.ParseUint(p.info["memoryBytes"], 10, 64)
		if err != nil {
			return fmt.Errorf("the pod's memory: %w", err)
		}
		machine, err := pss(vmm, ram)
		if err != nil {
			return err
		}
		shims, vmms = append(shims, own.other), append(vmms, machine.other)
		code, guests = append(code, machine.code), append(guests, machine.guest)
	}
	fmt.Printf("\nmemory with %d pods (PSS)\n", len(b.pods))
	row("shim", "MiB", shims)
	row("VMM without guest memory", "MiB", vmms)
	row("  and its translated code", "MiB", code)
	row("guest memory in use", "MiB", guests)
	if daemonPID != 0 {
		own, err := pss(daemonPID, 0)
		if err != nil {
			return err
		}
		row("daemon", "MiB", []float64{own.other})
	}
	return nil
}

// sizes are proportional set sizes in MiB.
type sizes struct {
	other, guest float64
	code         float64 // what an emulator has translated
}

// pss sums a process's proportional set size: guest memory, which is a mapping of at least ram bytes, and code that
// was written and is run, apart from the rest.
func pss(pid int, ram uint64) (sizes, error) {
	var s sizes
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return s, err
	}
	defer f.Close()
	sum := &s.other
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if from, to, ok := strings.Cut(fields[0], "-"); ok && !strings.HasSuffix(fields[0], ":") {
			start, _ := strconv.ParseUint(from, 16, 64)
			end, _ := strconv.ParseUint(to, 16, 64)
			switch {
			case strings.Contains(fields[1], "wx"):
				sum = &s.code
			case ram > 0 && end-start >= ram:
				sum = &s.guest
			default:
				sum = &s.other
			}
			continue
		}
		if fields[0] == "Pss:" {
			kib, _ := strconv.ParseFloat(fields[1], 64)
			*sum += kib / 1024
		}
	}
	return s, lines.Err()
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
	for _, name := range []string{"daemon", "shim"} {
		pids := watched[name]
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
