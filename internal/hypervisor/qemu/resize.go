package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu/qmp"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// sizes is what the guest was made for. Resizing is done one at a time.
type sizes struct {
	cfg hypervisor.Config
	mu  sync.Mutex
}

// growthPath is the memory device among QEMU's objects.
const growthPath = "/machine/peripheral/" + growthID

// ResizeMemory has the guest take or give back memory of the growth device, and waits until it has done so.
func (v *vm) ResizeMemory(ctx context.Context, bytes uint64) (uint64, error) {
	v.sizes.mu.Lock()
	defer v.sizes.mu.Unlock()
	now, err := v.resizeMemory(ctx, bytes)
	if err != nil {
		err = fmt.Errorf("resize memory: %w", err)
	}
	return now, err
}

func (v *vm) resizeMemory(ctx context.Context, bytes uint64) (now uint64, err error) {
	monitor, start := v.currentMonitor(), v.sizes.cfg.Memory
	want, err := v.sizes.cfg.Added(bytes)
	if v.sizes.cfg.Growth() == 0 {
		return start, err
	}
	// What the guest has is told also to a caller whose time is over.
	plugged := func() error {
		ctx, done := vmm.Unbroken(ctx)
		defer done()
		var added uint64
		err := monitor.Execute(ctx, "qom-get", map[string]any{"path": growthPath, "property": "size"}, &added)
		if err == nil {
			now = start + added
		}
		return err
	}
	if err != nil {
		return now, errors.Join(err, plugged())
	}
	request := map[string]any{"path": growthPath, "property": "requested-size", "value": want}
	if err := monitor.Execute(ctx, "qom-set", request, nil); err != nil {
		return now, errors.Join(err, plugged())
	}
	for {
		// The event may come before the look or after it.
		changed, stop := monitor.Watch(func(e qmp.Event) bool { return e.Name == "MEMORY_DEVICE_SIZE_CHANGE" })
		err := plugged()
		if err == nil && now != start+want {
			select {
			case <-changed:
			case <-v.Done():
				err = v.Ended()
			case <-ctx.Done():
				err = vmm.NotAdded(ctx, now-start, want)
			}
		}
		stop()
		if err != nil || now == start+want {
			return now, err
		}
	}
}

// slot is a place for a processor.
type slot struct {
	Type  string         `json:"type"`
	Props map[string]any `json:"props"`
	// Path is set where there is one.
	Path string `json:"qom-path"`
}

// ResizeVCPUs plugs or unplugs processors, the last that came first. Emulated ones stay plugged: QEMU 7.2 corrupts its memory
// when it removes one.
func (v *vm) ResizeVCPUs(ctx context.Context, n int) (int, error) {
	v.sizes.mu.Lock()
	defer v.sizes.mu.Unlock()
	now, err := v.resizeVCPUs(ctx, n)
	if err != nil {
		err = fmt.Errorf("resize processors: %w", err)
	}
	return now, err
}

func (v *vm) resizeVCPUs(ctx context.Context, n int) (now int, err error) {
	var slots []slot
	if err := v.currentMonitor().Execute(ctx, "query-hotpluggable-cpus", nil, &slots); err != nil {
		return 0, err
	}
	slices.Reverse(slots) // it tells the last first
	for _, s := range slots {
		if s.Path != "" {
			now++
		}
	}
	if err := v.sizes.cfg.CheckVCPUs(n); err != nil {
		return now, err
	}
	for i, s := range slots {
		if s.Path == "" && now < n {
			if err := v.plugVCPU(ctx, i, s); err != nil {
				return now, err
			}
			now++
		}
	}
	for i, s := range slices.Backward(slots) {
		if v.sizes.cfg.Accel == hypervisor.TCG {
			break
		}
		if s.Path != "" && now > n {
			if err := v.unplug(ctx, vcpuID(i)); err != nil {
				return now, err
			}
			now--
		}
	}
	return now, nil
}

func vcpuID(slot int) string { return fmt.Sprintf("vcpu%d", slot) }

func (v *vm) plugVCPU(ctx context.Context, i int, s slot) error {
	device := map[string]any{"driver": s.Type, "id": vcpuID(i)}
	for key, value := range s.Props {
		device[key] = value
	}
	return v.currentMonitor().Execute(ctx, "device_add", device, nil)
}

// unplug takes a device from the guest and waits until QEMU has let go of it.
func (v *vm) unplug(ctx context.Context, id string) error {
	monitor := v.currentMonitor()
	deleted, stop := monitor.Watch(func(e qmp.Event) bool {
		var data struct{ Device string }
		return e.Name == "DEVICE_DELETED" && json.Unmarshal(e.Data, &data) == nil && data.Device == id
	})
	defer stop()
	if err := monitor.Execute(ctx, "device_del", map[string]any{"id": id}, nil); err != nil {
		return err
	}
	select {
	case <-deleted:
		return nil
	case <-v.Done():
		return v.Ended()
	case <-ctx.Done():
		return fmt.Errorf("QEMU has not let go of it: %w", context.Cause(ctx))
	}
}
