// Command pistis runs and looks after pods.
package main

import (
	"os"

	"github.com/pistis-run/pistis/internal/cli"
)

func main() { os.Exit(cli.Main()) }
