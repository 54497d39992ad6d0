package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/cri"
	"github.com/pistis-run/pistis/internal/cri/streaming"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/telemetry"
	"github.com/pistis-run/pistis/internal/version"
)

// Run serves until ctx ends, drains, and takes everything down but the pods.
func Run(ctx context.Context, cfg config.Config, log *slog.Logger) (err error) {
	start := time.Now()
	var down cleanup.Stack
	defer func() { err = errors.Join(err, down.Run(ctx)) }()
	locked, err := lockDirs(cfg.Root, cfg.State)
	if err != nil {
		return err
	}
	down.Add("unlock", closing(locked.Close))
	counts := telemetry.NewMetrics(version.Version)
	engine, err := openEngine(ctx, cfg, counts, log, &down)
	if err != nil {
		return err
	}
	if err := engine.recover(ctx, log); err != nil {
		return err
	}
	if err := engine.startPlugins(&down); err != nil {
		return err
	}
	down.Add("stop tending networks", background(ctx, func(ctx context.Context) { engine.tendNetworks(ctx, log) }))
	down.Add("stop trying out KVM", background(ctx, func(ctx context.Context) { engine.handlers.warmUp(ctx, log) }))
	counts.Census(engine.census)
	counts.Counters(func() []telemetry.Counter { return engine.counters(log) })
	stopMetrics, err := counts.Serve(cfg.Metrics, log)
	if err != nil {
		return err
	}
	down.Add("stop metrics", stopMetrics)
	streams, err := streaming.Listen(streaming.Options{
		Address: cfg.Stream.Address, IdleTimeout: cfg.Stream.IdleTimeout.Duration,
		Processes: engine.containers, Sandboxes: engine.sandboxes, Log: log,
	})
	if err != nil {
		return err
	}
	down.Add("close streams", streams.Close)

	draining := make(chan struct{})
	tracing, stopTracing, err := telemetry.Tracing(ctx, telemetry.TracingOptions{
		Endpoint: cfg.Tracing.Endpoint, Ratio: cfg.Tracing.Ratio, Version: version.Version, Log: log,
	})
	if err != nil {
		return err
	}
	down.Add("stop tracing", stopTracing)
	runtime := cri.New(criOptions(cfg, engine, streams, draining, log))
	server := grpc.NewServer(append(cri.Interceptors(log, observeCalls(counts, runtime.HandlerOf)), tracing...)...)
	runtime.Register(server)
	cri.NewOperator(engine.images).Register(server)
	listener, err := listen(ctx, cfg.Socket)
	if err != nil {
		return err
	}
	log.Info("serving", logfields.Socket, cfg.Socket, logfields.Streams, streams.Addr().String(), logfields.Version, version.Version,
		logfields.PID, os.Getpid(), logfields.Duration, time.Since(start))
	return serve(ctx, server, listener, cfg.DrainTimeout.Duration, draining, log)
}

// background runs fn until it ends or the returned function is called, which waits for it.
func background(ctx context.Context, fn func(context.Context)) (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { fn(ctx) })
	return func(context.Context) error {
		cancel()
		running.Wait()
		return nil
	}
}

// serve answers calls until ctx ends, and then lets those that run end, for as long as drain.
func serve(ctx context.Context, server *grpc.Server, listener net.Listener, drain time.Duration, draining chan struct{}, log *slog.Logger) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if err := notify("READY=1\nSTATUS=serving"); err != nil {
		log.Warn("service manager", logfields.Error, err)
	}
	select {
	case err := <-served:
		return fmt.Errorf("daemon: serving ended: %w", err)
	case <-ctx.Done():
	}
	log.Info("going down; pods keep running", logfields.Drain, drain)
	if err := notify("STOPPING=1\nSTATUS=waiting for calls"); err != nil {
		log.Warn("service manager", logfields.Error, err)
	}
	close(draining)
	cut := time.AfterFunc(drain, func() {
		log.Warn("calls still run and are cut off", logfields.Drain, drain)
		server.Stop()
	})
	server.GracefulStop()
	cut.Stop()
	return <-served
}

func criOptions(cfg config.Config, e *engine, streams *streaming.Server, draining <-chan struct{}, log *slog.Logger) cri.Options {
	writable := &usage{dir: e.paths.scratch()}
	containerFS := func(ctx context.Context) (image.FSInfo, error) {
		info, err := writable.info(ctx) // what VMs write
		if err != nil {
			return info, err
		}
		bytes, inodes, err := e.roots.Total(ctx)
		info.UsedBytes, info.UsedInodes = info.UsedBytes+bytes, info.UsedInodes+inodes
		return info, err
	}
	return cri.Options{
		Sandboxes: e.sandboxes, Containers: e.containers, Images: e.images, Events: e.events, Streams: streams,
		ContainerFS: containerFS, NetworkReady: e.network.Status, SetPodCIDR: podCIDR(cfg.Network),
		Handlers: e.handlers.forCRI(), SystemdCgroups: e.handlers.groups.systemd(),
		Version: version.Version, Info: map[string]any{"config": cfg, "version": version.Version, "pid": os.Getpid()},
		Log: log, Done: draining,
	}
}
