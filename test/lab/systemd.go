package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// systemdWord, at the end of the kernel's command line, makes systemd the first process.
	systemdWord    = "systemd"
	systemdProgram = "/lib/systemd/systemd"
	// commandUnit runs the command, goalUnit is what systemd starts.
	commandUnit = "lab.service"
	goalUnit    = "lab.target"
)

// units are what systemd runs, and nothing of what this machine runs: the command, and D-Bus, over which runtimes ask for
// cgroups.
func units(self string) map[string]string {
	const early = "[Unit]\nDefaultDependencies=no\n"
	return map[string]string{
		goalUnit: "[Unit]\nDescription=The lab\nRequires=" + commandUnit + "\n",
		commandUnit: early + "Requires=dbus.socket\nAfter=dbus.socket\n" +
			// The end of the server is the end of the lab.
			"SuccessAction=reboot-force\nFailureAction=reboot-force\n" +
			"[Service]\nType=exec\nExecStart=" + self + " " + serveVerb + "\nStandardOutput=tty\nTTYPath=/dev/console\n" +
			"Delegate=yes\nTasksMax=infinity\nLimitNOFILE=1048576\nLimitCORE=infinity\nOOMPolicy=continue\n",
		"dbus.socket.d/lab.conf":  early,
		"dbus.service.d/lab.conf": early + "[Service]\nStandardOutput=null\n",
	}
}

// becomeSystemd returns only with an error.
func becomeSystemd() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if strings.ContainsAny(self, " \t\n%$\"'\\") {
		return fmt.Errorf("%s cannot be in a unit", self)
	}
	for name, text := range units(self) {
		path := filepath.Join("/run/systemd/system", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	// Without an id systemd takes this for the first boot of a new machine, and enables services.
	if err := os.WriteFile("/etc/machine-id", []byte("6c61626c61626c61626c61626c61626c\n"), 0o444); err != nil {
		return err
	}
	argv := []string{"systemd", "--unit=" + goalUnit, "--log-target=console", "--log-level=warning", "--show-status=no"}
	return fmt.Errorf("%s: %w", systemdProgram, unix.Exec(systemdProgram, argv, os.Environ()))
}
