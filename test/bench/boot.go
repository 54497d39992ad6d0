package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pistis-run/pistis/internal/agentclient"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu"
)

const (
	// emptyMarker is what emptyinit writes to the console.
	emptyMarker = "empty-init"
	bootTimeout = 2 * time.Minute
	bootMemory  = 512 << 20
)

// guest is what the comparison of boots needs.
type guest struct {
	kernel, initrd, emptyInit string
	accel                     hypervisor.Acceleration
}

// boots compares the time until the agent answers with the time until an init that does nothing runs: the same
// kernel, the same machine, one after the other.
func (b *bench) boots(ctx context.Context, count int) error {
	g := b.guest
	if g.kernel == "" {
		return nil
	}
	dir, err := os.MkdirTemp("", "pistis-bench-boot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	empty := filepath.Join(dir, "initrd")
	if err := writeEmptyInitrd(empty, g.emptyInit); err != nil {
		return err
	}
	var ready, bare, ratios []float64
	for range count {
		full, err := g.boot(ctx, g.initrd, answered)
		if err != nil {
			return err
		}
		alone, err := g.boot(ctx, empty, marked)
		if err != nil {
			return err
		}
		ready, bare, ratios = append(ready, ms(full)), append(bare, ms(alone)), append(ratios, full.Seconds()/alone.Seconds())
	}
	fmt.Printf("\nboot of the guest, %s, %d times\n", g.accel, count)
	row("to the agent's answer", "ms", ready)
	row("to an init that does nothing", "ms", bare)
	row("ratio", "", ratios)
	return nil
}

// boot starts a VM, waits until it is up and returns how long that took from the guest's first instruction.
func (g guest) boot(ctx context.Context, initrd string, up func(context.Context, hypervisor.VM, *screen) error) (_ time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	console := &screen{seen: make(chan struct{})}
	vm, err := qemu.Driver{}.Start(ctx, hypervisor.Config{
		ID: "bench", Accel: g.accel, Kernel: g.kernel, Initrd: initrd, Size: hypervisor.Size{VCPUs: 1, Memory: bootMemory}, Console: console, RunDir: os.TempDir(),
	})
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	defer func() {
		err = errors.Join(err, vm.Kill())
		<-vm.Done()
	}()
	if err := up(ctx, vm, console); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// answered waits until the agent has shaken hands.
func answered(ctx context.Context, vm hypervisor.VM, _ *screen) error {
	agent, err := agentclient.Connect(ctx, vm.Dial, 0)
	if err != nil {
		return err
	}
	return agent.Close()
}

// marked waits until emptyinit has spoken.
func marked(ctx context.Context, vm hypervisor.VM, console *screen) error {
	select {
	case <-console.seen:
		return nil
	case <-vm.Done():
		return fmt.Errorf("guest with an empty init: %w", vm.Err())
	case <-ctx.Done():
		return fmt.Errorf("guest with an empty init: %w", ctx.Err())
	}
}

// screen looks for emptyMarker in what a guest writes.
type screen struct {
	once sync.Once
	seen chan struct{}
	text []byte
}

func (s *screen) Write(p []byte) (int, error) {
	s.text = append(s.text, p...)
	if bytes.Contains(s.text, []byte(emptyMarker)) {
		s.once.Do(func() { close(s.seen) })
		s.text = nil
	}
	return len(p), nil
}

// writeEmptyInitrd makes an initrd of a program and a console.
func writeEmptyInitrd(path, program string) error {
	code, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	const directory, device, file = 0o040755, 0o020600, 0o100755
	entry(&b, "dev", directory, 0, 0, nil)
	entry(&b, "dev/console", device, 5, 1, nil)
	entry(&b, "init", file, 0, 0, code)
	entry(&b, "TRAILER!!!", 0, 0, 0, nil)
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// entry appends a file in cpio's "newc" format, as the kernel's initramfs takes it.
func entry(b *bytes.Buffer, name string, mode, major, minor int, data []byte) {
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	io.WriteString(b, name+"\x00")
	pad(b)
	b.Write(data)
	pad(b)
}

func pad(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&3)) }
