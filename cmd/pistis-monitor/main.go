// Command pistis-monitor is the parent of the containers of one pod on the host's kernel. pistisd starts it.
package main

// The monitor sets the number of its threads itself.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

import (
	"os"

	"github.com/pistis-run/pistis/internal/monitor/server"
)

func main() { os.Exit(server.Main(os.Args[1:])) }
