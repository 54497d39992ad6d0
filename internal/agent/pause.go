package agent

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

func pauseAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID} }

// Pause is the first process of the pod's shared PID namespace: it reaps what containers leave behind and does
// nothing else. It does not return.
func Pause() {
	// Signals of the pod's processes are caught so that none ends the namespace.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals)
	for range signals {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
	}
}
