package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/pistis-run/pistis/test/endpoint"
	"github.com/pistis-run/pistis/test/images"
)

// amounts say how much is done.
type amounts struct {
	cycles   int // pods that come and go
	parallel int // of these at a time
	kill     int // cycles in a life of the daemon; 0: it is not killed
	vms      int // every so many cycles the pod is a VM; 0: none
	crowd    int // pods that live at once, instead of all this
	handlers []string
}

func main() {
	var o endpoint.Options
	var n amounts
	flag.StringVar(&o.Work, "work", "", "a directory for the daemon's files")
	flag.StringVar(&o.Bin, "bin", "", "where Pistis' commands are")
	runc := flag.String("runc", "", "path of runc")
	crun := flag.String("crun", "", "path of crun; empty leaves it out")
	shim := flag.String("shim", "", "path of containerd-shim-runc-v2; empty leaves it out")
	guest := flag.String("guest", "", "the guest's directory; empty leaves VMs out")
	cache := flag.String("images", "", "the cache of test images")
	flag.IntVar(&n.cycles, "cycles", 1000, "how many pods come and go")
	flag.IntVar(&n.parallel, "parallel", 8, "how many at a time")
	flag.IntVar(&n.kill, "kill", 100, "after how many pods the daemon is killed; 0: never")
	flag.IntVar(&n.vms, "vms", 50, "one of how many pods is a VM; 0: none")
	flag.IntVar(&n.crowd, "crowd", 0, "how many pods live at once, instead of coming and going")
	flag.Parse()
	o.Runtimes = map[string]string{"runc": *runc}
	if *crun != "" {
		o.Runtimes["crun"] = *crun
	}
	if *guest == "" {
		n.vms = 0
	} else {
		o.Extra = fmt.Sprintf("[handlers.vm]\ntype = \"vm\"\n[vm]\nkernel = %q\ninitrd = %q\nmodules = %q\nmemory_mib = 160\nboot_timeout = \"5m\"\n", *guest+"/vmlinuz", *guest+"/initrd", *guest+"/modules.img")
	}
	if n.handlers = slices.Sorted(maps.Keys(o.Runtimes)); *shim != "" {
		o.Extra = fmt.Sprintf("[handlers.shim]\ntype = \"shim\"\nshim = %q\n[handlers.shim.options]\nBinaryName = %q\n", *shim, *runc) + o.Extra
		n.handlers = append(n.handlers, "shim")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, n, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// run starts a daemon, wears it out and ends it. What it has left behind then is an error.
func run(ctx context.Context, o endpoint.Options, n amounts, cache string) (err error) {
	progress := func(line string) { fmt.Fprintln(os.Stderr, line) }
	registry, err := images.Serve(ctx, images.Options{Cache: cache, Groups: []images.Group{images.Tour}, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	daemon, err := endpoint.New(ctx, "pistis", o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.Close(context.WithoutCancel(ctx))) }()
	ctx, stop := daemon.Watch(ctx)
	defer stop()
	defer func() {
		if ended := context.Cause(ctx); ended != nil { // why all calls fail then
			err = ended
		}
	}()
	image := registry.Ref("pistis/tour:latest")
	if err := daemon.Pull(ctx, image); err != nil {
		return err
	}
	begin := time.Now()
	if n.crowd > 0 {
		err = (&crowd{daemon: daemon, image: image, pods: make([]endpoint.Pod, n.crowd), parallel: n.parallel}).run(ctx)
	} else {
		err = newSoak(daemon, image, n).run(ctx)
	}
	fmt.Printf("%v in all\n", time.Since(begin).Round(time.Second))
	return err
}
