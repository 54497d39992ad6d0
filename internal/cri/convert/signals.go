package convert

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signalNames are the names of CRI's signals by number. They are spelled out because the names of the enum's
// constants are not part of its contract.
var signalNames = [...]string{
	"", "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGIO",
	"SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS",
	"SIGTERM", "SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH",
	"SIGXCPU", "SIGXFSZ", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4", "SIGRTMIN+5", "SIGRTMIN+6",
	"SIGRTMIN+7", "SIGRTMIN+8", "SIGRTMIN+9", "SIGRTMIN+10", "SIGRTMIN+11", "SIGRTMIN+12", "SIGRTMIN+13", "SIGRTMIN+14",
	"SIGRTMIN+15", "SIGRTMAX-14", "SIGRTMAX-13", "SIGRTMAX-12", "SIGRTMAX-11", "SIGRTMAX-10", "SIGRTMAX-9", "SIGRTMAX-8",
	"SIGRTMAX-7", "SIGRTMAX-6", "SIGRTMAX-5", "SIGRTMAX-4", "SIGRTMAX-3", "SIGRTMAX-2", "SIGRTMAX-1", "SIGRTMAX",
}

// signalName is empty for the runtime's default.
func signalName(s runtime.Signal) (string, error) {
	if s < 0 || int(s) >= len(signalNames) {
		return "", invalid("config.stop_signal: unknown signal %d", s)
	}
	return signalNames[s], nil
}

// The kernel's numbers of the first and the last real-time signal that programs may use.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// SignalNumber is CRI's number of a signal of the kernel; one that CRI does not have is the runtime's default.
func SignalNumber(s unix.Signal) runtime.Signal {
	name := unix.SignalName(s)
	switch {
	case s == 0:
		return runtime.Signal_SIGNAL_RUNTIME_DEFAULT
	case s == sigRTMin:
		name = "SIGRTMIN"
	case s == sigRTMax:
		name = "SIGRTMAX"
	case s > sigRTMin && s <= sigRTMin+15:
		name = fmt.Sprintf("SIGRTMIN+%d", s-sigRTMin)
	case s > sigRTMin && s < sigRTMax:
		name = fmt.Sprintf("SIGRTMAX-%d", sigRTMax-s)
	}
	return runtime.Signal(max(0, slices.Index(signalNames[:], name)))
}
