package cloudhypervisor

import (
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// counters are as Cloud Hypervisor 53 says them.
const counters = `{"_net2": {"rx_bytes": 10, "tx_bytes": 20, "rx_frames": 1, "tx_frames": 2},
"layer-1": {"read_bytes": 512, "write_bytes": 0, "read_ops": 1, "write_ops": 0, "read_latency_avg": 18446744073709551615}}`

func TestReading(t *testing.T) {
	got, err := reading([]byte(counters))
	if err != nil || len(got) != 2 || len(got["_net2"]) != 4 || len(got["layer-1"]) != 4 {
		t.Fatalf("reading %v, %v", got, err)
	}
	for device, want := range map[string]hypervisor.Counter{
		"_net2":   {CounterName: hypervisor.CounterName{Kind: hypervisor.Bytes, Part: "card", Direction: "out"}, Value: 20},
		"layer-1": {CounterName: hypervisor.CounterName{Kind: hypervisor.Operations, Part: "disk", Direction: "in"}, Value: 1},
	} {
		if n := got[device][want.CounterName]; n != want.Value {
			t.Errorf("%s: %v is %d, want %d", device, want.CounterName, n, want.Value)
		}
	}
	for _, bad := range []string{"", "[]", `{"a": 1}`, `{"a": {"read_bytes": -1}}`} {
		if _, err := reading([]byte(bad)); !errdefs.IsInternal(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzReading(f *testing.F) {
	f.Add([]byte(counters))
	f.Fuzz(func(t *testing.T, answer []byte) {
		got, err := reading(answer)
		for device, counts := range got {
			if err != nil || len(counts) > len(counted) {
				t.Errorf("%q: %v, %v", device, counts, err)
			}
		}
	})
}
