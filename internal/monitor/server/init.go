package server

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// InitArg makes the program the first process of a PID namespace that containers share. Such a namespace lives as long
// as this process, which does nothing but reap what the containers leave behind.
const InitArg = "init"

// initProcess ends with SIGTERM or SIGINT, which the kernel gives to a first process only where it asked for them.
func initProcess() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	for {
		reapAll()
		if s := <-signals; s != unix.SIGCHLD {
			return
		}
	}
}

func reapAll() {
	for {
		var status unix.WaitStatus
		if pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
			return
		}
	}
}
