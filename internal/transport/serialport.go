package transport

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// SerialPort is the name of the virtio-serial port that carries the streams.
const SerialPort = "org.pistis.0"

// OpenSerialPort opens, in the guest, the port for NewServer. It waits until the port's driver has found it,
// until ctx ends; /dev and /sys must be mounted. A port can be open once.
func OpenSerialPort(ctx context.Context) (*os.File, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if device, ok := findSerialPort("/sys/class/virtio-ports", SerialPort); ok {
			f, err := os.OpenFile(filepath.Join("/dev", device), os.O_RDWR, 0)
			if err == nil || !os.IsNotExist(err) {
				return f, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the virtio-serial port %s: %w", SerialPort, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// findSerialPort returns the device whose name attribute in the class directory is name.
func findSerialPort(class, name string) (device string, ok bool) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", false
	}
	for _, e := range entries {
		got, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(got)) == name {
			return e.Name(), true
		}
	}
	return "", false
}
