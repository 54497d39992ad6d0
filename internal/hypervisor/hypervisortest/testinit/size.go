package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// size has the kernel use so many processors, and returns how many MiB of memory it has.
func size(want string) (string, error) {
	processors, err := strconv.Atoi(want)
	if err != nil {
		return "", err
	}
	err = waitFor(func() error {
		n, err := use(processors)
		if err == nil && n != processors {
			err = fmt.Errorf("there are %d processors", n)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(info)) // MemTotal: N kB
	kib, err := strconv.ParseUint(fields[1], 10, 64)
	return fmt.Sprint(kib >> 10), err
}

// use brings the first processors into use, puts the others out of it, and counts those that are in use.
func use(want int) (n int, err error) {
	for n = 1; ; n++ { // the first is always in use
		file := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", n)
		state, err := os.ReadFile(file)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return min(n, want), nil
		case err != nil:
			return 0, err
		}
		wanted := "0"
		if n < want {
			wanted = "1"
		}
		if strings.TrimSpace(string(state)) == wanted {
			continue
		}
		if err := os.WriteFile(file, []byte(wanted), 0); err != nil {
			return 0, err
		}
	}
}

// touch uses so many MiB of memory and lets them go.
func touch(mib string) error {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return err
	}
	memory, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	return unix.Munmap(memory)
}
