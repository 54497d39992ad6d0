package boot

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// maxCmdline bounds the kernel command line, which the kernel itself limits to 2048 bytes on x86.
const maxCmdline = 64 << 10

// Params are the agent's parameters on the kernel command line, each as pistis.<name>.
type Params struct {
	// Transport is vsock or serial; empty means what the machine has.
	Transport string
	// Probe: say so on the console and power off at once.
	Probe bool
	// Reset: the machine cannot be switched off and ends when it is reset.
	Reset bool
	// LogLevel is debug, info (the default), warn or error.
	LogLevel slog.Level
}

func readParams(path string) (Params, error) {
	f, err := os.Open(path)
	if err != nil {
		return Params{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCmdline))
	if err != nil {
		return Params{}, err
	}
	return parseParams(string(text))
}

func parseParams(cmdline string) (Params, error) {
	var p Params
	for field := range strings.FieldsSeq(cmdline) {
		name, value, _ := strings.Cut(field, "=")
		switch name {
		case "pistis.transport":
			p.Transport = value
		case "pistis.poweroff":
			p.Reset = value == "reset"
		case "pistis.probe":
			p.Probe = true
		case "pistis.loglevel":
			if err := p.LogLevel.UnmarshalText([]byte(value)); err != nil {
				return p, fmt.Errorf("kernel parameter %s: %w", field, err)
			}
		}
	}
	return p, nil
}
