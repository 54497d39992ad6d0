// Command prog is what the containers of the monitor's tests run: each argument list is one thing that a container does.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		os.Exit(64)
	}
	n := 0
	if len(args) > 1 {
		n, _ = strconv.Atoi(args[1])
	}
	switch args[0] {
	case "exit":
		os.Exit(n)
	case "pause": // until a signal that is not ignored
		fmt.Println("ready")
		unix.Pause()
	case "term": // ends politely, with code 7
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		fmt.Println("ready")
		<-signals
		fmt.Println("terminated")
		os.Exit(7)
	case "say": // stdout, stderr
		fmt.Println(args[1])
		fmt.Fprintln(os.Stderr, args[2])
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
		fmt.Println("end of input")
	case "flood": // n numbered lines, on stdout; with a third argument after the end of that FIFO
		if len(args) > 2 {
			os.ReadFile(args[2])
		}
		w := bufio.NewWriterSize(os.Stdout, 64<<10)
		for i := range n {
			fmt.Fprintf(w, "%010d %s\n", i, strings.Repeat("x", 88))
		}
		w.Flush()
	case "drip": // the same, with a system call for each line
		line := []byte(strings.Repeat("x", 99) + "\n")
		for range n {
			os.Stdout.Write(line)
		}
	case "memory": // touches n MiB
		var held [][]byte
		for range n {
			block := make([]byte, 1<<20)
			for i := 0; i < len(block); i += 4096 {
				block[i] = 1
			}
			held = append(held, block)
		}
		fmt.Println(len(held))
	case "tty": // the size, whenever it changes, until there is a line of input
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGWINCH)
		size()
		go func() {
			for range signals {
				size()
			}
		}()
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Printf("got %s\n", strings.TrimSpace(line))
	case "child": // leaves a process that holds the output, and ends
		cmd := exec.Command("/proc/self/exe", "pause")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("child", cmd.Process.Pid)
	}
}

func size() {
	w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("size %dx%d\n", w.Col, w.Row)
}
