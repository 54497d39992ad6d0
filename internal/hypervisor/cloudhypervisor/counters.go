package cloudhypervisor

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// counted says what Cloud Hypervisor's counters are. Those of latencies are averages, and no sums.
var counted = map[string]hypervisor.CounterName{
	"read_bytes":  {Kind: hypervisor.Bytes, Part: hypervisor.PartDisk, Direction: hypervisor.In},
	"write_bytes": {Kind: hypervisor.Bytes, Part: hypervisor.PartDisk, Direction: hypervisor.Out},
	"read_ops":    {Kind: hypervisor.Operations, Part: hypervisor.PartDisk, Direction: hypervisor.In},
	"write_ops":   {Kind: hypervisor.Operations, Part: hypervisor.PartDisk, Direction: hypervisor.Out},
	"rx_bytes":    {Kind: hypervisor.Bytes, Part: hypervisor.PartCard, Direction: hypervisor.In},
	"tx_bytes":    {Kind: hypervisor.Bytes, Part: hypervisor.PartCard, Direction: hypervisor.Out},
	"rx_frames":   {Kind: hypervisor.Operations, Part: hypervisor.PartCard, Direction: hypervisor.In},
	"tx_frames":   {Kind: hypervisor.Operations, Part: hypervisor.PartCard, Direction: hypervisor.Out},
}

// Counters are what Cloud Hypervisor counts of its disks and cards.
func (v *vm) Counters(ctx context.Context) ([]hypervisor.Counter, error) {
	return v.meter.Counters(ctx)
}

func (v *vm) readCounters(ctx context.Context) error {
	answer, err := v.api.Do(ctx, "GET", apiPrefix+"vm.counters", nil)
	if err != nil {
		return err
	}
	r, err := reading(answer)
	if err != nil {
		return err
	}
	v.meter.Observe(r)
	return nil
}

// reading reads what Cloud Hypervisor says of its devices.
func reading(answer []byte) (vmm.Reading, error) {
	var devices map[string]map[string]uint64
	if err := json.Unmarshal(answer, &devices); err != nil {
		return nil, fmt.Errorf("counters: %w: %w", err, errdefs.ErrInternal)
	}
	r := vmm.Reading{}
	for device, counts := range devices {
		r[device] = map[hypervisor.CounterName]uint64{}
		for name, n := range counts {
			if counter, ok := counted[name]; ok {
				r[device][counter] = n
			}
		}
	}
	return r, nil
}
