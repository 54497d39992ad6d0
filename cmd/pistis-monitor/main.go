// A monitor has one processor; how many its cgroup gives it need not be watched.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command pistis-monitor is the parent of the containers of one pod on the host's kernel. pistisd starts it.
package main

import (
	"os"

	"github.com/pistis-run/pistis/internal/monitor/server"
)

func main() { os.Exit(server.Main(os.Args[1:])) }
