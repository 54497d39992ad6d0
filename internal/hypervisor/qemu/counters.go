package qemu

import (
	"context"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// blockStats are what QEMU counts of a disk.
type blockStats struct {
	Device string `json:"qdev"`
	Stats  struct {
		ReadBytes        uint64 `json:"rd_bytes"`
		WriteBytes       uint64 `json:"wr_bytes"`
		Reads            uint64 `json:"rd_operations"`
		Writes           uint64 `json:"wr_operations"`
		ReadNanoseconds  uint64 `json:"rd_total_time_ns"`
		WriteNanoseconds uint64 `json:"wr_total_time_ns"`
		FailedReads      uint64 `json:"failed_rd_operations"`
		FailedWrites     uint64 `json:"failed_wr_operations"`
		FailedFlushes    uint64 `json:"failed_flush_operations"`
	} `json:"stats"`
}

// Counters are what QEMU counts of its disks. Cards and streams are the kernel's, and QEMU does not see what they carry.
func (v *vm) Counters(ctx context.Context) ([]hypervisor.Counter, error) {
	return v.meter.Counters(ctx)
}

func (v *vm) readCounters(ctx context.Context) error {
	var all []blockStats
	if err := v.currentMonitor().Execute(ctx, "query-blockstats", nil, &all); err != nil {
		return err
	}
	v.meter.Observe(reading(all))
	return nil
}

func reading(all []blockStats) vmm.Reading {
	const disk = hypervisor.PartDisk
	r := vmm.Reading{}
	for _, b := range all {
		s := b.Stats
		r[b.Device] = map[hypervisor.CounterName]uint64{
			{Kind: hypervisor.Bytes, Part: disk, Direction: hypervisor.In}:         s.ReadBytes,
			{Kind: hypervisor.Bytes, Part: disk, Direction: hypervisor.Out}:        s.WriteBytes,
			{Kind: hypervisor.Operations, Part: disk, Direction: hypervisor.In}:    s.Reads,
			{Kind: hypervisor.Operations, Part: disk, Direction: hypervisor.Out}:   s.Writes,
			{Kind: hypervisor.Microseconds, Part: disk, Direction: hypervisor.In}:  s.ReadNanoseconds / 1000,
			{Kind: hypervisor.Microseconds, Part: disk, Direction: hypervisor.Out}: s.WriteNanoseconds / 1000,
			{Kind: hypervisor.Failures, Part: disk}:                                s.FailedReads + s.FailedWrites + s.FailedFlushes,
		}
	}
	return r
}
