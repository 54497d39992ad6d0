// Command leakcheck prints what a daemon left on the host, a line each, and exits 1 if there was anything.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/pistis-run/pistis/test/leak"
)

func main() {
	var s leak.Scope
	flag.StringVar(&s.Root, "root", "/var/lib/pistis", "the daemon's root directory")
	flag.StringVar(&s.State, "state", "/run/pistis", "the daemon's state directory")
	flag.StringVar(&s.Bridge, "bridge", "pistis0", "the built-in bridge")
	flag.StringVar(&s.Cgroup, "cgroup", "/pistis/", "part of the path of every cgroup of the daemon's pods")
	flag.Parse()
	found, err := leak.Find(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "leakcheck:", err)
		os.Exit(2)
	}
	for _, line := range found {
		fmt.Println(line)
	}
	if len(found) > 0 {
		os.Exit(1)
	}
}
