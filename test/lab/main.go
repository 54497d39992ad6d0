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
	"syscall"
	"time"
)

const (
	// failed is the exit code for what is not the command's own.
	failed = 125
	// kernelPackage is the kernel of the lab. An older one of Debian's has virtio-fs as a module.
	kernelPackage = "linux-image-6.12-cloud-amd64"
)

func main() {
	otherRoles()
	os.Exit(labMain(os.Args[1:], os.Stdout, os.Stderr))
}

// otherRoles makes the program what it is started as by itself or by the lab's kernel, and returns for a command line.
func otherRoles() {
	var err error
	switch {
	case os.Getpid() == 1:
		initMain(os.Args[1:])
	case len(os.Args) > 1 && os.Args[1] == serveVerb:
		err = serve()
	case len(os.Args) > 1 && os.Args[1] == shareRootVerb:
		err = shareRoot(os.Args[2:])
	default:
		return
	}
	fmt.Fprintf(os.Stderr, "lab: %s: %v\n", os.Args[1], err)
	os.Exit(failed)
}

// labMain runs the command line and returns the exit code.
func labMain(args []string, stdout, stderr io.Writer) int {
	o := options{stdout: stdout, stderr: stderr}
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.vcpus, "vcpus", 2, "processors of the lab")
	flags.IntVar(&o.memoryMiB, "memory", 4096, "memory of the lab in MiB; taken as it is touched")
	flags.IntVar(&o.diskMiB, "disk", 16384, "how much the lab can write, in MiB; taken as it is written")
	flags.StringVar(&o.cache, "cache", "", "directory for the lab's kernel; default: pistis/lab below the user's cache directory")
	flags.DurationVar(&o.timeout, "timeout", time.Hour, "how long the command may take, with the lab's boot")
	flags.BoolVar(&o.systemd, "systemd", false, "systemd is the first process, and makes the cgroups")
	flags.BoolVar(&o.verbose, "v", false, "show the lab's console and how long its boot takes")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: lab [flags] command [argument...]")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return failed
	}
	if o.command = flags.Args(); len(o.command) == 0 {
		flags.Usage()
		return failed
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	code, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(stderr, "lab:", err)
		return failed
	}
	return code
}

// options of one run.
type options struct {
	vcpus, memoryMiB, diskMiB int
	cache                     string
	timeout                   time.Duration
	verbose, systemd          bool
	command                   []string
	stdout, stderr            io.Writer
}

// run boots a lab, runs the command in it and takes it down.
func run(ctx context.Context, o options) (code int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no end within %v", o.timeout))
	defer cancel()
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return 0, err
		}
		o.cache = filepath.Join(dir, "pistis", "lab")
	}
	k, err := fetchKernel(ctx, o)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	m, err := boot(o, k)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.stop()) }()
	ready := func() {
		if o.verbose {
			fmt.Fprintf(o.stderr, "lab: Linux %s is up after %v\n", k.Version, time.Since(began).Round(10*time.Millisecond))
		}
	}
	code, err = m.execute(ctx, o, ready)
	if err == nil {
		return code, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return 0, fmt.Errorf("%w%s", err, m.lastWords())
}
