package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/endpoint"
)

// subject is a runtime handler of a daemon: a column of the table.
type subject struct {
	*endpoint.Endpoint
	handler string
}

func (s subject) title() string { return s.Name + "/" + s.handler }

// ours tells whether a subject is Pistis.
func ours(title string) bool { return strings.HasPrefix(title, "pistis") }

func allSubjects() []string {
	var all []string
	for _, kind := range endpoint.Kinds() {
		all = append(all, kind+"/runc", kind+"/crun")
	}
	return all
}

type bench struct {
	amounts
	*table
	image     string
	endpoints []*endpoint.Endpoint
	subjects  []subject
	conmon    *conmon
	pods      int // that were named so far
}

// begin starts the daemons of the subjects that are wanted and gives them the image.
func (b *bench) begin(ctx context.Context, o endpoint.Options, wanted []string) error {
	for _, title := range wanted {
		kind, handler, ok := strings.Cut(title, "/")
		if !ok || !slices.Contains(allSubjects(), title) {
			return fmt.Errorf("no subject %q: there are %q", title, allSubjects())
		}
		if o.Runtimes[handler] == "" {
			continue
		}
		i := slices.IndexFunc(b.endpoints, func(e *endpoint.Endpoint) bool { return e.Name == kind })
		if i < 0 {
			e, err := endpoint.New(ctx, kind, o)
			if err != nil {
				return err
			}
			i, b.endpoints = len(b.endpoints), append(b.endpoints, e)
			if err := e.Pull(ctx, b.image); err != nil {
				return err
			}
		}
		b.subjects = append(b.subjects, subject{Endpoint: b.endpoints[i], handler: handler})
	}
	return nil
}

func (b *bench) end(ctx context.Context) error {
	var err error
	for _, e := range b.endpoints {
		err = errors.Join(err, e.Close(ctx))
	}
	if b.conmon != nil {
		err = errors.Join(err, b.conmon.close())
	}
	return err
}

func (b *bench) titles() []string {
	var titles []string
	for _, s := range b.subjects {
		titles = append(titles, s.title())
	}
	if b.conmon != nil {
		titles = append(titles, conmonTitle)
	}
	return titles
}

// run starts a pod that has nothing to do, unless command says otherwise.
func (b *bench) run(ctx context.Context, s subject, name string, command ...string) (endpoint.Pod, error) {
	if len(command) == 0 {
		command = []string{"sleep", "1000000"}
	}
	return s.Run(ctx, s.handler, name, b.image, command...)
}

// name is one that no pod had before.
func (b *bench) name() string {
	b.pods++
	return fmt.Sprintf("p%05d", b.pods)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// single measures pods one after the other, the subjects by turns.
func (b *bench) single(ctx context.Context) error {
	if !b.wants(start, execute, remove, cpu) {
		return nil
	}
	for i := range b.rounds + 1 {
		progress(fmt.Sprintf("single pods: round %d of %d", i, b.rounds))
		for _, s := range b.subjects {
			// The first round only warms caches up: the image is unpacked, programs are read.
			add := b.add
			if i == 0 {
				add = func(string, string, ...float64) {}
			}
			if err := b.cycle(ctx, s, add); err != nil {
				return err
			}
		}
	}
	return nil
}

// cycle measures the life of a pod.
func (b *bench) cycle(ctx context.Context, s subject, add func(row, subject string, values ...float64)) error {
	usedBefore, accounted := s.CPU()
	begin := time.Now()
	p, err := b.run(ctx, s, b.name())
	if err != nil {
		return err
	}
	add(start, s.title(), ms(time.Since(begin)))
	for range b.execs {
		begin := time.Now()
		resp, err := s.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.Container, Cmd: []string{"true"}, Timeout: 60})
		if err != nil {
			return fmt.Errorf("%s: ExecSync: %w", s.Name, err)
		}
		if resp.ExitCode != 0 {
			return fmt.Errorf("%s: ExecSync of true ended with %d: %s", s.Name, resp.ExitCode, resp.Stderr)
		}
		add(execute, s.title(), ms(time.Since(begin)))
	}
	begin = time.Now()
	if err := s.Remove(ctx, p.Sandbox); err != nil {
		return err
	}
	add(remove, s.title(), ms(time.Since(begin)))
	if used, ok := s.CPU(); ok && accounted {
		add(cpu, s.title(), ms(used-usedBefore))
	}
	return os.RemoveAll(p.Config.LogDirectory)
}

// many measures a daemon that has many pods, the subjects by turns.
func (b *bench) many(ctx context.Context) error {
	if !b.wants(rate, rateCPU, memory, daemon, stats, metrics, restart) {
		return nil
	}
	for i := range b.turns {
		for _, s := range b.subjects {
			progress(fmt.Sprintf("%d pods at once: turn %d of %d: %s", b.amounts.pods, i+1, b.turns, s.title()))
			if err := b.crowd(ctx, s); err != nil {
				return err
			}
		}
		if b.conmon != nil && b.wants(memory) {
			used, err := b.conmon.memory(ctx, b.amounts.pods)
			if err != nil {
				return err
			}
			b.add(memory, conmonTitle, used)
		}
	}
	return nil
}

// atATime is how many pods are started or removed side by side.
const atATime = 4

// crowd starts many pods of one subject, measures and removes them.
func (b *bench) crowd(ctx context.Context, s subject) error {
	n := b.amounts.pods
	pods := make([]endpoint.Pod, n)
	starting, startCtx := errgroup.WithContext(ctx)
	starting.SetLimit(atATime)
	usedBefore, accounted := s.CPU()
	begin := time.Now()
	for i := range n {
		name := b.name()
		starting.Go(func() (err error) {
			pods[i], err = b.run(startCtx, s, name)
			return err
		})
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	b.add(rate, s.title(), float64(n)/time.Since(begin).Seconds())
	if used, ok := s.CPU(); ok && accounted {
		b.add(rateCPU, s.title(), ms(used-usedBefore)/float64(n))
	}
	for _, measure := range []func(context.Context, subject) error{b.footprint, b.statistics, b.restarts} {
		if err := measure(ctx, s); err != nil {
			return err
		}
	}
	removing, removeCtx := errgroup.WithContext(ctx)
	removing.SetLimit(atATime)
	for _, p := range pods {
		removing.Go(func() error { return errors.Join(s.Remove(removeCtx, p.Sandbox), os.RemoveAll(p.Config.LogDirectory)) })
	}
	return removing.Wait()
}

// footprint measures the memory of the daemon and of what it runs for each pod.
func (b *bench) footprint(_ context.Context, s subject) error {
	own, err := endpoint.PSS(s.PID())
	if err != nil {
		return err
	}
	b.add(daemon, s.title(), own)
	helpers, err := s.Helpers()
	if err != nil {
		return err
	}
	used, err := endpoint.PSS(helpers...)
	if err != nil {
		return err
	}
	b.add(memory, s.title(), used/float64(b.amounts.pods))
	return nil
}

// statistics measures what reads the statistics of all pods.
func (b *bench) statistics(ctx context.Context, s subject) error {
	for _, call := range []struct {
		row   string
		times int
		do    func() (int, error)
	}{
		{stats, 10, func() (int, error) {
			resp, err := s.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
			return len(resp.GetStats()), err
		}},
		{metrics, 3, func() (int, error) {
			resp, err := s.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
			return len(resp.GetPodMetrics()), err
		}},
	} {
		for range call.times {
			if !b.wants(call.row) {
				break
			}
			begin := time.Now()
			got, err := call.do()
			if status.Code(err) == codes.Unimplemented {
				break // the table has a dash for it
			}
			if err != nil {
				return fmt.Errorf("%s: %s: %w", s.Name, call.row, err)
			}
			if got < b.amounts.pods {
				return fmt.Errorf("%s: %s of %d pods, there are %d", s.Name, call.row, got, b.amounts.pods)
			}
			b.add(call.row, s.title(), ms(time.Since(begin)))
		}
	}
	return nil
}

// restarts measures the time from the request to end until the next daemon serves all pods.
func (b *bench) restarts(ctx context.Context, s subject) error {
	if !b.wants(restart) {
		return nil
	}
	begin := time.Now()
	if err := errors.Join(s.Stop(), s.Launch()); err != nil {
		return err
	}
	err := s.Poll(ctx, "all pods to be served", func(ctx context.Context) error { return s.Served(ctx, b.amounts.pods) })
	b.add(restart, s.title(), ms(time.Since(begin)))
	return err
}
