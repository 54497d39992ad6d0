package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/reaper"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/version"
)

// Main runs a monitor, which is started by monitor.Launch and by nobody else: args are the bundle, stdin, lock and socket
// come as descriptors. With InitArg alone it is the first process of a PID namespace. It returns the exit code.
func Main(args []string) int {
	// They were for this process, and the runtimes are programs in Go too.
	for _, name := range []string{"GOMAXPROCS", "GODEBUG", "GOGC"} {
		os.Unsetenv(name)
	}
	if len(args) == 1 && args[0] == InitArg {
		initProcess()
		return 0
	}
	if len(args) == 1 && args[0] == "-version" {
		fmt.Println("pistis-monitor", version.Version)
		return 0
	}
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "pistis-monitor: %v\n", err)
		return 1
	}
	return 0
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("this command is for pistisd to call")
	}
	dir := bundle.Dir(args[0])
	// None of these is for the runtime and the containers.
	unix.CloseOnExec(monitor.LockFD)
	unix.CloseOnExec(monitor.SocketFD)
	var settings monitor.Settings
	if err := bundle.ReadRecord(monitor.SettingsFile(dir), &settings); err != nil {
		return err
	}
	if err := recorded(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	socket := os.NewFile(monitor.SocketFD, "socket")
	l, err := net.FileListener(socket)
	socket.Close()
	if err != nil {
		return err
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return errors.New("descriptor 4 is no Unix socket")
	}
	level := slog.LevelInfo
	if settings.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctx, cancel := context.WithCancel(context.Background())
	var reaping sync.WaitGroup
	defer reaping.Wait()
	defer cancel()
	reap := reaper.New()
	reaping.Go(func() { reap.Run(ctx) })
	runtime := runc.New(settings.Runtime, settings.Args, dir.Sockets(), reap)
	return New(dir, runtime, reap, log).Serve(listener)
}

// recorded waits until the daemon has recorded this process. One that dies before that closes its end instead.
func recorded() error {
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return errors.New("the daemon ended before it had recorded this monitor")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), int(os.Stdin.Fd()), 0)
}
