package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// clearScreen moves to the upper left and removes what is there.
const clearScreen = "\x1b[H\x1b[2J"

func (a *app) topCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	var order string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch what pods and their containers use, the busiest first",
		Args:  cobra.NoArgs,
		RunE: a.connected(func(ctx context.Context, c *client, _ []string) error {
			if order != "cpu" && order != "memory" {
				return fmt.Errorf("order %q: use cpu or memory", order)
			}
			if interval < 100*time.Millisecond {
				return fmt.Errorf("an interval of %s is too short: use 100ms or more", interval)
			}
			var before []*runtime.PodSandboxStats
			for {
				stats, err := c.podStats(ctx, before == nil)
				if err != nil {
					return err
				}
				if err := a.printTop(stats, before, order); err != nil || once {
					return err
				}
				before = stats
				select {
				case <-time.After(interval):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}),
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one table and end")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between two tables")
	cmd.Flags().StringVar(&order, "sort", "cpu", "what comes first: cpu or memory")
	return cmd
}

// podStats asks a second time at first, as stats does.
func (c *client) podStats(ctx context.Context, first bool) ([]*runtime.PodSandboxStats, error) {
	stats, err := c.ListPodSandboxStats(ctx, nil)
	unknown := func(s *runtime.PodSandboxStats) bool { return s.GetLinux().GetCpu().GetUsageNanoCores() == nil }
	if err != nil || !first || !slices.ContainsFunc(stats, unknown) {
		return stats, err
	}
	select {
	case <-time.After(time.Second):
		return c.ListPodSandboxStats(ctx, nil)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// printTop prints a table, on a terminal in place of the last one, or JSON. before are the statistics of the last time, if any.
func (a *app) printTop(stats, before []*runtime.PodSandboxStats, order string) error {
	if a.output == "json" {
		return printJSON(a.out, stats)
	}
	if out, ok := a.out.(*os.File); ok && before != nil && term.IsTerminal(int(out.Fd())) {
		fmt.Fprint(a.out, clearScreen)
	}
	slices.SortFunc(stats, func(x, y *runtime.PodSandboxStats) int {
		return busier(order, x.GetLinux().GetCpu(), x.GetLinux().GetMemory(), y.GetLinux().GetCpu(), y.GetLinux().GetMemory())
	})
	last := map[string]*runtime.PodSandboxStats{}
	for _, s := range before {
		last[s.GetAttributes().GetId()] = s
	}
	var rows [][]string
	for _, s := range stats {
		linux, meta := s.GetLinux(), s.GetAttributes().GetMetadata()
		rx, tx := rates(linux.GetNetwork(), last[s.GetAttributes().GetId()].GetLinux().GetNetwork())
		rows = append(rows, []string{short(s.GetAttributes().GetId()), meta.GetNamespace() + "/" + meta.GetName(), "", cores(linux.GetCpu()),
			size(linux.GetMemory().GetWorkingSetBytes().GetValue()), rx, tx, fmt.Sprint(linux.GetProcess().GetProcessCount().GetValue()), ""})
		containers := slices.Clone(linux.GetContainers())
		slices.SortFunc(containers, func(x, y *runtime.ContainerStats) int { return busier(order, x.Cpu, x.Memory, y.Cpu, y.Memory) })
		for _, c := range containers {
			rows = append(rows, []string{short(c.Attributes.GetId()), "", c.Attributes.GetMetadata().GetName(), cores(c.Cpu),
				size(c.Memory.GetWorkingSetBytes().GetValue()), "", "", "", size(c.WritableLayer.GetUsedBytes().GetValue())})
		}
	}
	return table(a.out, "ID POD CONTAINER CORES MEMORY RX/S TX/S TASKS WRITABLE", rows)
}

func busier(order string, xc *runtime.CpuUsage, xm *runtime.MemoryUsage, yc *runtime.CpuUsage, ym *runtime.MemoryUsage) int {
	cpu := cmp.Compare(yc.GetUsageNanoCores().GetValue(), xc.GetUsageNanoCores().GetValue())
	memory := cmp.Compare(ym.GetWorkingSetBytes().GetValue(), xm.GetWorkingSetBytes().GetValue())
	if order == "memory" {
		return cmp.Or(memory, cpu)
	}
	return cmp.Or(cpu, memory)
}

// rates are what came in and went out in a second, over all interfaces.
func rates(now, before *runtime.NetworkUsage) (rx, tx string) {
	seconds := float64(now.GetTimestamp()-before.GetTimestamp()) / 1e9
	if now == nil || before == nil || seconds <= 0 {
		return "-", "-"
	}
	sum := func(n *runtime.NetworkUsage) (rx, tx uint64) {
		for _, i := range append([]*runtime.NetworkInterfaceUsage{n.DefaultInterface}, n.Interfaces...) {
			rx, tx = rx+i.GetRxBytes().GetValue(), tx+i.GetTxBytes().GetValue()
		}
		return rx, tx
	}
	rx1, tx1 := sum(now)
	rx0, tx0 := sum(before)
	rate := func(now, before uint64) string { return size(uint64(float64(now-min(now, before)) / seconds)) }
	return rate(rx1, rx0), rate(tx1, tx0)
}
