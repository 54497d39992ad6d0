package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pistis-run/pistis/internal/agent/modules"
	"github.com/pistis-run/pistis/internal/agent/share"
	"github.com/pistis-run/pistis/internal/agent/uevent"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/transport"
)

// memoryTimeout bounds the start of the drivers, for which nobody waits.
const memoryTimeout = 5 * time.Minute

// commonMemory is what the guest has in common with the host, as a device of which the kernel makes a block device once it has
// drivers for it. They are loaded when there is something large for the first time: pods that have nothing such do not need them.
type commonMemory struct {
	open    func() (*os.File, error)
	opening sync.Once
	file    atomic.Pointer[os.File]
	log     *slog.Logger
}

// findMemory returns memory for the data of shares, or nil where the machine has none.
func (a *Agent) findMemory() *share.Memory {
	if _, err := transport.MemoryDevice(transport.VirtioDevices); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return share.NewMemory(&commonMemory{open: openMemory, log: a.Log}, transport.MemorySize)
}

// Ready has the device opened when it is asked first, and does not wait for that.
func (m *commonMemory) Ready() bool {
	m.opening.Do(func() {
		go func() {
			f, err := m.open()
			if err != nil {
				m.log.Warn("data of shares passes through their streams", logfields.Error, err)
				return
			}
			m.file.Store(f)
		}()
	})
	return m.file.Load() != nil
}

func (m *commonMemory) ReadAt(b []byte, at int64) (int, error) { return m.file.Load().ReadAt(b, at) }

func (m *commonMemory) WriteAt(b []byte, at int64) (int, error) { return m.file.Load().WriteAt(b, at) }

func openMemory() (f *os.File, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), memoryTimeout)
	defer cancel()
	device, err := transport.MemoryDevice(transport.VirtioDevices)
	if err != nil {
		return nil, err
	}
	for _, driver := range transport.MemoryDrivers() {
		if _, err := os.Stat(driver); err == nil {
			continue
		}
		if err := modules.Load(ctx, filepath.Base(driver)); err != nil {
			return nil, fmt.Errorf("driver of memory in common with the host: %w", err)
		}
	}
	err = uevent.Wait(ctx, func() (bool, error) {
		var err error
		if f, err = transport.OpenMemory(device, "/dev"); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return true, err
	})
	return f, err
}
