package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/endpoint"
)

// puller is a daemon and the handler whose form its pull makes.
type puller struct {
	column, kind string
	handler      string // pistisd's default
	other        string // the handler for which the other form is made afterwards
}

// pulls has the daemons take turns at pulling the image into empty stores, and pistisd then make the other form of its layers
// for a first container. What the table gets are medians, and those of the ratios to the peer in the same turn.
func (b *bench) pulls(ctx context.Context) error {
	seconds, cpu := map[string][]float64{}, map[string][]float64{}
	for turn := range b.turns {
		for _, p := range []puller{{peer, "containerd", "", ""}, {micro, "pistis", "vm", "runc"}, {host, "pistis", "runc", ""}} {
			progress(fmt.Sprintf("pulls: turn %d of %d: %s", turn+1, b.turns, p.column))
			if err := b.pullOnce(ctx, p, seconds, cpu); err != nil {
				return err
			}
		}
	}
	for _, column := range []string{peer, host, micro} {
		b.results.add("pull, s", column, median(seconds[column]))
		b.results.add("pull, times the peer's", column, median(over(seconds[column], seconds[peer])))
		if len(cpu[column]) > 0 {
			b.results.add("pull, processor time, s", column, median(cpu[column]))
		}
	}
	b.results.add("pull, then a first container of the other form, s", micro, median(seconds["other"]))
	return nil
}

func (b *bench) pullOnce(ctx context.Context, p puller, seconds, cpu map[string][]float64) (err error) {
	o := b.Options
	o.Default = p.handler
	e, err := endpoint.New(ctx, p.kind, o)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, e.Close(context.WithoutCancel(ctx)))
		syscall.Sync() // what is still to be written and freed is nobody else's
	}()
	took, used, err := timed(e, func() error { return e.Pull(ctx, b.image) })
	if err != nil {
		return err
	}
	seconds[p.column] = append(seconds[p.column], took)
	if used > 0 {
		cpu[p.column] = append(cpu[p.column], used)
	}
	progress(fmt.Sprintf("pulls: %s: %.1f s, processor time %.1f s", p.column, took, used))
	if p.other == "" {
		return nil
	}
	first, err := b.start(ctx, e, p.other, "other")
	if err != nil {
		return err
	}
	progress(fmt.Sprintf("pulls: first container of the other form: %v", first.create))
	seconds["other"] = append(seconds["other"], first.create.Seconds())
	_, err = e.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: first.Sandbox})
	return err
}

// timed tells how long something took, and the processor time that the daemon used for it.
func timed(e *endpoint.Endpoint, do func() error) (seconds, cpu float64, err error) {
	before, _ := e.CPU()
	begin := time.Now()
	err = do()
	seconds = time.Since(begin).Seconds()
	after, _ := e.CPU()
	return seconds, (after - before).Seconds(), err
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// over divides turn by turn.
func over(values, by []float64) []float64 {
	var ratios []float64
	for i := range min(len(values), len(by)) {
		ratios = append(ratios, values[i]/by[i])
	}
	return ratios
}
