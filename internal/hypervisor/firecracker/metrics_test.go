package firecracker

import (
	"context"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// said is what a Firecracker says of itself, shortened.
const said = `{"utc_timestamp_ms": 1, "balloon": {"free_page_report_freed": 4096, "free_page_report_fails": 1},
"block_drive1": {"read_bytes": 7}, "block": {"read_bytes": 512, "read_agg": {"min_us": 1, "max_us": 5, "sum_us": 9}, "update_fails": 2,
"invalid_reqs_count": 1, "rate_limiter_throttled_events": 3}, "put_api_requests": {"drive_count": 5, "drive_fails": 1},
"patch_api_requests": {"drive_fails": 1}, "seccomp": {"num_faults": 1}, "vmm": {"panic_count": 0}, "news": {"of": "tomorrow"}}`

func line() string { return strings.ReplaceAll(said, "\n", "") + "\n" }

func TestParseMetrics(t *testing.T) {
	type name = hypervisor.CounterName
	told, stays, err := parseMetrics([]byte(said))
	if err != nil {
		t.Fatal(err)
	}
	if want := map[name]uint64{
		{Kind: hypervisor.Bytes, Part: "reclaim", Direction: "out"}:    4096,
		{Kind: hypervisor.Failures, Part: "reclaim"}:                   1,
		{Kind: hypervisor.Bytes, Part: "disk", Direction: "in"}:        512,
		{Kind: hypervisor.Microseconds, Part: "disk", Direction: "in"}: 9,
		{Kind: hypervisor.Failures, Part: "disk"}:                      3,
		{Kind: hypervisor.Throttled, Part: "disk"}:                     3,
		{Kind: hypervisor.Failures, Part: "api"}:                       2,
	}; !maps.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	if want := map[name]uint64{{Kind: hypervisor.Failures, Part: "filter"}: 1, {Kind: hypervisor.Failures, Part: "vmm"}: 0}; !maps.Equal(stays, want) {
		t.Errorf("stays %v, want %v", stays, want)
	}
	for _, bad := range []string{"", "[]", `{"block": 3}`, `{"block": {"read_bytes": -1}}`, `{"block": {"read_bytes": 18446744073709551616}}`, `{"block": {"read_agg": {"min_us": 1}}}`} {
		if _, _, err := parseMetrics([]byte(bad)); !errdefs.IsInternal(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzParseMetrics(f *testing.F) {
	f.Add([]byte(said))
	f.Add([]byte(`{"block": {"read_bytes": 18446744073709551615, "read_agg": {"sum_us": 18446744073709551615}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		told, stays, err := parseMetrics(text)
		if err == nil && len(told)+len(stays) > len(rows) {
			t.Errorf("%d counters", len(told)+len(stays))
		}
	})
}

// TestMetrics: what Firecracker writes is summed, by itself and when it is told to.
func TestMetrics(t *testing.T) {
	r, w := io.Pipe()
	var says string // when it is told to
	m := newMetrics(func(context.Context) error {
		_, err := io.WriteString(w, says)
		return err
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.read(r)
	}()
	throttled := func() uint64 {
		t.Helper()
		all, err := m.Counters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			if c.CounterName == (hypervisor.CounterName{Kind: hypervisor.Throttled, Part: hypervisor.PartDisk}) {
				return c.Value
			}
		}
		return 0
	}
	says = line()
	if n := throttled(); n != 3 {
		t.Errorf("%d, want 3", n)
	}
	io.WriteString(w, line()) // by itself
	m.told <- <-m.told        // it has been read
	if n := throttled(); n != 9 {
		t.Errorf("%d, want 9", n)
	}
	says = "and what is this?\n"
	if _, err := m.Counters(t.Context()); !errdefs.IsInternal(err) {
		t.Errorf("not metrics: %v", err)
	}
	says = line()
	if n := throttled(); n != 12 {
		t.Errorf("%d, want 12", n)
	}
	says = "" // it says that it has, and has not
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.Counters(ctx); err == nil {
		t.Error("counters that were not written")
	}
	go io.WriteString(w, strings.Repeat("x", 2*maxMetrics))
	<-ended // a line without an end is not waited for
	r.Close()
	m.Close()
	if _, err := m.Counters(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("after the end: %v", err)
	}
}
