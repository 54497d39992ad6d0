package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pistis-run/pistis/test/endpoint"
	"github.com/pistis-run/pistis/test/images"
)

// amounts say how much is measured.
type amounts struct {
	rounds int // of single pods, one after the other
	execs  int // in each of these
	pods   int // at once
	turns  int // of all that is done with many pods, and of logs
}

func main() {
	var o endpoint.Options
	var n amounts
	flag.StringVar(&o.Work, "work", "", "a directory for the daemons' files")
	flag.StringVar(&o.Peers, "peers", "", "the directory of the peers' programs")
	flag.StringVar(&o.Bin, "bin", "", "the directory of Pistis' commands")
	runc := flag.String("runc", "", "path of runc")
	crun := flag.String("crun", "", "path of crun; empty leaves it out")
	conmon := flag.String("conmon", "", "path of conmon, which is measured alone; empty leaves it out")
	cache := flag.String("images", "", "the cache of test images")
	wanted := flag.String("subjects", strings.Join(allSubjects(), ","), "what is measured, as daemon/handler, in this order")
	rows := flag.String("rows", "", "names of the rows that are measured; empty: all")
	flag.IntVar(&n.rounds, "rounds", 20, "how many single pods of each subject are measured")
	flag.IntVar(&n.execs, "execs", 3, "how many execs in each of them")
	flag.IntVar(&n.pods, "pods", 50, "how many pods at once")
	flag.IntVar(&n.turns, "turns", 2, "how often these are started, and how often logs are measured")
	flag.Parse()
	o.Runtimes = map[string]string{"runc": *runc}
	if *crun != "" {
		o.Runtimes["crun"] = *crun
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, n, *conmon, *cache, *wanted, *rows); err != nil {
		fmt.Fprintln(os.Stderr, "peerbench:", err)
		os.Exit(1)
	}
}

// run starts all daemons, measures, prints the table, and ends them. What was measured before an error is printed too.
func run(ctx context.Context, o endpoint.Options, n amounts, conmon, cache, wanted, rows string) (err error) {
	registry, err := images.Serve(ctx, images.Options{Cache: cache, Groups: []images.Group{images.Tour}, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	image := registry.Ref("pistis/tour:latest")
	o.Pause = registry.Ref("pistis/pause:latest")
	t, err := newTable(rows)
	if err != nil {
		return err
	}
	b := &bench{amounts: n, image: image, table: t}
	defer func() { err = errors.Join(err, b.end(context.WithoutCancel(ctx))) }()
	if err := b.begin(ctx, o, strings.Split(wanted, ",")); err != nil {
		return err
	}
	if conmon != "" {
		rootfs := filepath.Join(o.Work, "conmon")
		if b.conmon, err = newConmon(ctx, conmon, o.Runtimes["runc"], image, rootfs); err != nil {
			return err
		}
	}
	begin := time.Now()
	defer func() {
		t.print(os.Stdout, b.titles(), n)
		fmt.Printf("\nMeasured in %v; load average at the end: %s\n", time.Since(begin).Round(time.Second), loadAverage())
	}()
	for _, phase := range []func(context.Context) error{b.single, b.logs, b.many} {
		if err := phase(ctx); err != nil {
			return err
		}
	}
	return nil
}

func progress(line string) { fmt.Fprintln(os.Stderr, line) }

func loadAverage() string {
	f, err := os.Open("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	b, _ := io.ReadAll(f)
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
