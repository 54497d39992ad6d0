package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/pistis-run/pistis/test/bench/virtiofs"
	"github.com/pistis-run/pistis/test/endpoint"
	"github.com/pistis-run/pistis/test/images"
)

// The table's columns.
const (
	peer  = "containerd, runc"
	host  = "runc"
	share = "guest, virtio-fs"
	micro = "microVM"
)

type options struct {
	endpoint.Options
	peer         virtiofs.Guest
	load, cache  string
	modules      string
	mib, pods    int
	turns        int
	pullsOnly    bool
	memoryPerPod int
}

type bench struct {
	options
	image   string
	results results
}

func main() {
	var o options
	flag.StringVar(&o.Work, "work", "", "a directory for the daemons' files")
	flag.StringVar(&o.Peers, "peers", "", "the directory of the peers' programs")
	flag.StringVar(&o.Bin, "bin", "", "the directory of Pistis' commands")
	runc := flag.String("runc", "", "path of runc")
	flag.StringVar(&o.load, "load", "", "the program fsload")
	flag.StringVar(&o.cache, "images", "", "the cache of test images")
	flag.StringVar(&o.modules, "modules", "", "the guest's disk of modules")
	flag.IntVar(&o.mib, "mib", 2048, "size of the image")
	flag.IntVar(&o.pods, "pods", 20, "how many microVM pods share it")
	flag.IntVar(&o.turns, "turns", 3, "how often each daemon pulls the image into an empty store")
	flag.BoolVar(&o.pullsOnly, "pulls-only", false, "measure nothing but pulls")
	flag.IntVar(&o.memoryPerPod, "pod-mib", 160, "memory of each of these")
	o.peer.Flags()
	flag.Parse()
	o.peer.Before = []string{"nice", "-n", "-20"} // the daemons' cgroups are favoured too, see package endpoint
	o.Runtimes = map[string]string{"runc": *runc}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "rootfs:", err)
		os.Exit(1)
	}
}

func progress(line string) { fmt.Fprintln(os.Stderr, line) }

// run prints what was measured, also before an error.
func run(ctx context.Context, o options) (err error) {
	registry, err := images.Serve(ctx, images.Options{Cache: o.cache, Groups: []images.Group{images.Tour}, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	o.Default = "vm" // so that a pull makes the form that its guests want
	o.Pause = registry.Ref("pistis/pause:latest")
	o.Extra = fmt.Sprintf("[handlers.vm]\ntype = \"vm\"\n[vm]\nkernel = %q\ninitrd = %q\nmodules = %q\nboot_timeout = \"5m\"\n", o.peer.Kernel, o.peer.Initrd, o.modules)
	b := &bench{options: o, image: registry.Ref("bench/rootfs:latest"), results: results{}}
	defer func() { b.results.print(os.Stdout) }()
	progress(fmt.Sprintf("making an image of %d MiB", o.mib))
	if err := push(ctx, b.image, o.load, o.mib); err != nil {
		return fmt.Errorf("push the image: %w", err)
	}
	if err := b.pulls(ctx); err != nil || o.pullsOnly {
		return err
	}
	for _, phase := range []struct {
		kind string
		do   func(context.Context, *endpoint.Endpoint) error
	}{{"containerd", b.onContainerd}, {"pistis", b.onPistis}} {
		progress(phase.kind)
		e, err := endpoint.New(ctx, phase.kind, b.options.Options)
		if err != nil {
			return err
		}
		if err := errors.Join(phase.do(ctx, e), e.Close(context.WithoutCancel(ctx))); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) onContainerd(ctx context.Context, e *endpoint.Endpoint) error {
	if err := b.pull(ctx, e, peer); err != nil {
		return err
	}
	return b.work(ctx, e, "runc", peer)
}

func (b *bench) onPistis(ctx context.Context, e *endpoint.Endpoint) error {
	if err := b.pull(ctx, e, micro); err != nil {
		return err
	}
	if err := b.work(ctx, e, "vm", micro); err != nil {
		return err
	}
	before := diskUse(e.Scope.Root)
	if err := b.work(ctx, e, "runc", host); err != nil {
		return err
	}
	b.results.add("disk that it takes, MiB", host, mib(diskUse(e.Scope.Root)-before))
	if err := b.crowd(ctx, e); err != nil {
		return err
	}
	return b.workOnShare(ctx, e)
}

// pull fetches the image and measures what that leaves on the disk.
func (b *bench) pull(ctx context.Context, e *endpoint.Endpoint, column string) error {
	progress("pulling")
	before := diskUse(e.Scope.Root)
	if err := e.Pull(ctx, b.image); err != nil {
		return err
	}
	b.results.add("disk that it takes, MiB", column, mib(diskUse(e.Scope.Root)-before))
	return nil
}

// workOnShare runs the load in a guest with virtio-fs, on the root file system of a container on this host's kernel.
func (b *bench) workOnShare(ctx context.Context, e *endpoint.Endpoint) error {
	progress("the load in a guest with virtio-fs")
	p, err := b.start(ctx, e, "runc", "share")
	if err != nil {
		return err
	}
	root, err := overlayBelow(e.Scope.Root)
	if err != nil {
		return err
	}
	out, err := b.peer.Run(ctx, b.Work, b.load, "-root", root)
	if err := errors.Join(err, e.Remove(ctx, p.Sandbox)); err != nil {
		return err
	}
	return b.results.take(share, out)
}
