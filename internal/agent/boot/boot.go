package boot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/agent/cgroup"
	"github.com/pistis-run/pistis/internal/agent/guestnet"
	"github.com/pistis-run/pistis/internal/logfields"
)

// probeAnswer is what the console shows when the kernel was told to probe: the guest's kernel and its first
// process ran.
const probeAnswer = "pistis-probe-ok"

// maxFiles is the limit of open files that containers inherit unless their spec has its own.
const maxFiles = 1 << 20

// ErrProbed is what Prepare returns when it was only asked whether the guest runs.
var ErrProbed = errors.New("probed")

// Prepare makes the guest usable and returns the parameters and the log, which goes to the console.
func Prepare() (Params, *slog.Logger, error) {
	catchSignals()
	unix.Umask(0o022)
	log := logger(slog.LevelInfo)
	if err := leaveInitramfs(); err != nil {
		return Params{}, log, fmt.Errorf("leave the initramfs: %w", err)
	}
	if err := mountAll(mounts()); err != nil {
		return Params{}, log, err
	}
	if err := openConsole(); err != nil {
		return Params{}, log, err
	}
	if err := slackTimers(); err != nil {
		return Params{}, log, err
	}
	params, err := readParams("/proc/cmdline")
	if err != nil {
		return params, log, err
	}
	log = logger(params.LogLevel)
	if params.Probe {
		_, _ = fmt.Fprintln(os.Stderr, probeAnswer)
		return params, log, ErrProbed
	}
	log.Debug("mounted", logfields.Uptime, Uptime())
	if err := loadModules(moduleList, params.Transport, log); err != nil {
		return params, log, err
	}
	log.Debug("modules loaded", logfields.Uptime, Uptime())
	return params, log, prepareKernel()
}

func prepareKernel() error {
	if err := cgroup.Prepare(); err != nil {
		return err
	}
	if err := guestnet.Loopback(); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: maxFiles, Max: maxFiles}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	return nil
}

// catchSignals keeps signals from ending the first process, which would end the guest. They are caught and not
// ignored: children inherit what is ignored.
func catchSignals() {
	nobody := make(chan os.Signal, 1)
	signal.Notify(nobody, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
}

// openConsole makes the console the standard streams: the kernel could not do it where the initramfs has no
// device node.
func openConsole() error {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		fd, err = unix.Open("/dev/null", unix.O_RDWR, 0) // a machine without a console
	}
	if err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	for target := range 3 {
		if fd == target {
			continue
		}
		if err := unix.Dup3(fd, target, 0); err != nil {
			return fmt.Errorf("open console: %w", err)
		}
	}
	if fd > 2 {
		return unix.Close(fd)
	}
	return nil
}

// logger writes short lines without a date: the kernel's clock is not set yet, and the host adds its own.
func logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(console{}, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// console writes to the standard error that is open at the time.
type console struct{}

func (console) Write(p []byte) (int, error) {
	if _, err := io.WriteString(os.Stderr, "agent: "); err != nil {
		return 0, err
	}
	return os.Stderr.Write(p)
}

// Uptime is the time since the kernel started.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// PowerOff ends the guest and does not return.
func PowerOff(params Params, log *slog.Logger) {
	unix.Sync()
	if !params.Reset {
		err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		log.Error("power off failed, resetting", logfields.Error, err)
	}
	// A machine that cannot be switched off may be reset; its VMM is told to end instead of booting again.
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	log.Error("reset failed", logfields.Error, err)
	select {}
}
