package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// timerSlack is how late the kernel may wake the agent and what it starts from a sleep: a tick of most kernels.
const timerSlack = 4 * time.Millisecond

// slackTimers lets the kernel put timers together. Go's runtime has a thread that sleeps for 20 µs at a time while
// anything runs; each of these sleeps is a timer interrupt, which costs a virtual machine some exits and an
// emulated one most of its time. Threads and children inherit the slack; containers get back the usual one.
func slackTimers() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		file := filepath.Join("/proc", thread.Name(), "timerslack_ns")
		if err := os.WriteFile(file, []byte(strconv.FormatInt(timerSlack.Nanoseconds(), 10)), 0); err != nil {
			return fmt.Errorf("timer slack: %w", err)
		}
	}
	return nil
}
