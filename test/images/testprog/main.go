// Command testprog is a static program for test images: what a shell cannot do, or an image without one needs.
//
//	testprog uid           prints "Effective uid: N", for setuid tests
//	testprog pause         sleeps until it gets SIGINT or SIGTERM, and reaps children
//	testprog memory MIB    touches that much memory, says so and pauses
//	testprog exit N        exits with that code
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	args := append(os.Args[1:], "", "")
	n, err := strconv.Atoi(args[1])
	switch args[0] {
	case "uid":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return
	case "pause":
		pause()
		return
	case "memory":
		if err == nil {
			memory(n)
			return
		}
	case "exit":
		if err == nil {
			os.Exit(n)
		}
	}
	fmt.Fprintln(os.Stderr, "usage: testprog uid | pause | memory MIB | exit N")
	os.Exit(2)
}

// pause ends on a signal; as process 1 of a pod it also reaps what is left to it.
func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}

func memory(mib int) {
	var held [][]byte
	for range mib {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		held = append(held, block)
	}
	fmt.Printf("holding %d MiB\n", len(held))
	pause()
}
