package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pistis-run/pistis/internal/agent/modules"
	"github.com/pistis-run/pistis/internal/agent/share"
	"github.com/pistis-run/pistis/internal/agent/uevent"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/transport"
)

// memoryTimeout bounds the start of the drivers.
const memoryTimeout = 10 * time.Second

// commonMemory is what the guest has in common with the host, as a device of which the kernel makes a block device when it is
// opened: pods that need none of it do not wait for drivers.
type commonMemory struct {
	*os.File
	agent *Agent
}

// findMemory returns memory for the data of shares, or nil where the machine has none.
func (a *Agent) findMemory() *share.Memory {
	if _, err := transport.MemoryDevice(transport.VirtioDevices); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return share.NewMemory(&commonMemory{agent: a}, transport.MemorySize)
}

// Open tells whether there is something to read and to write.
func (m *commonMemory) Open() bool {
	err := m.open()
	if err != nil {
		m.agent.Log.Warn("data of shares passes through their streams", logfields.Error, err)
	}
	return err == nil
}

func (m *commonMemory) open() error {
	ctx, cancel := context.WithTimeout(context.Background(), memoryTimeout)
	defer cancel()
	device, err := transport.MemoryDevice(transport.VirtioDevices)
	if err != nil {
		return err
	}
	for _, driver := range transport.MemoryDrivers() {
		if _, err := os.Stat(driver); err == nil {
			continue
		}
		if err := modules.Load(ctx, filepath.Base(driver)); err != nil {
			return fmt.Errorf("driver of memory in common with the host: %w", err)
		}
	}
	return uevent.Wait(ctx, func() (bool, error) {
		var err error
		if m.File, err = transport.OpenMemory(device, "/dev"); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return true, err
	})
}
