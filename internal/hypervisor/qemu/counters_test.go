package qemu

import (
	"encoding/json"
	"testing"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

func TestReading(t *testing.T) {
	// As QEMU 7.2 says it, shortened.
	const said = `[{"device": "", "qdev": "disk-0", "node-name": "disk-0", "stats": {"rd_bytes": 512, "wr_bytes": 1024, "rd_operations": 1, "wr_operations": 2,
"rd_total_time_ns": 5999, "wr_total_time_ns": 1000, "failed_rd_operations": 1, "failed_wr_operations": 2, "failed_flush_operations": 4, "timed_stats": []}},
{"qdev": "disk-1", "stats": {"rd_bytes": 1}}]`
	var all []blockStats
	if err := json.Unmarshal([]byte(said), &all); err != nil {
		t.Fatal(err)
	}
	got := reading(all)
	if len(got) != 2 || got["disk-1"][hypervisor.CounterName{Kind: hypervisor.Bytes, Part: "disk", Direction: "in"}] != 1 {
		t.Errorf("reading %v", got)
	}
	for name, want := range map[hypervisor.CounterName]uint64{
		{Kind: hypervisor.Bytes, Part: "disk", Direction: "out"}:       1024,
		{Kind: hypervisor.Microseconds, Part: "disk", Direction: "in"}: 5,
		{Kind: hypervisor.Failures, Part: "disk"}:                      7,
	} {
		if n := got["disk-0"][name]; n != want {
			t.Errorf("%v: %d, want %d", name, n, want)
		}
	}
}
