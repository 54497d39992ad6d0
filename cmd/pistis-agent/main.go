// Command pistis-agent is the first process of a guest: it makes the guest a pod and serves api/agent/v1.
//
// It takes its parameters from the kernel command line (pistis.transport, pistis.loglevel, pistis.poweroff, pistis.probe).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent"
	"github.com/pistis-run/pistis/internal/agent/boot"
	"github.com/pistis-run/pistis/internal/agent/guestport"
	"github.com/pistis-run/pistis/internal/agent/modules"
	"github.com/pistis-run/pistis/internal/agent/rootfs"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/reaper"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/transport"
)

// Where things are in the guest.
const (
	runcPath  = "/bin/runc"
	runcState = "/run/runc"
	stateDir  = "/run/pistis"
)

func main() {
	if os.Args[0] == agent.PauseName {
		agent.Pause()
	}
	if os.Args[0] == modules.HelperPath {
		os.Exit(modules.Helper(os.Args[1:]))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "pistis-agent runs as the first process of a virtual machine and nowhere else")
		os.Exit(2)
	}
	params, log, err := boot.Prepare()
	if err == nil {
		err = run(params, log)
	}
	if err != nil && !errors.Is(err, boot.ErrProbed) {
		log.Error("the guest ends", logfields.Error, err)
	}
	boot.PowerOff(params, log)
}

// eager is two volumes' messages, there and back.
const eager = 4

// run serves the host until it says to shut down, or has gone.
func run(params boot.Params, log *slog.Logger) error {
	runtime.GOMAXPROCS(runtime.NumCPU() + eager)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	reap := reaper.New()
	go reap.Run(ctx)

	log.Debug("opening the transport", logfields.Uptime, boot.Uptime())
	carrier, err := guestport.Open(ctx, params.Transport)
	if err != nil {
		return err
	}
	if done := carrier.Done(); done != nil {
		go func() {
			<-done
			cancel(errors.New("the host has gone"))
		}()
	}
	a := agent.New(agent.Config{
		Runtime: runc.New(runcPath, []string{"--root", runcState}, "/run", reap), Reaper: reap, Roots: rootfs.New(stateDir + "/fs"),
		Dir: stateDir, Log: log, Eager: eager, Uptime: boot.Uptime(),
	})
	control, err := carrier.Listen(agentv1.ControlPort)
	if err != nil {
		return err
	}
	streams, err := carrier.Listen(agentv1.StreamPort)
	if err != nil {
		return err
	}
	direct, err := carrier.Listen(transport.DirectPort)
	if err != nil {
		return err
	}
	log.Info("ready", logfields.Uptime, boot.Uptime())
	return a.Serve(ctx, control, streams, direct)
}
