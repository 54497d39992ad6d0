package firecracker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// maxMetrics bounds what Firecracker says of itself at once: some 8 KiB, and half of one more for each drive.
const maxMetrics = 256 << 10

// row says where a counter is among Firecracker's metrics: the sum of some fields of some groups. A field that begins with
// '*' is all that end so.
type row struct {
	groups, fields  string
	kind            hypervisor.CounterKind
	part, direction string
	// stays: the fields are not set back when they were told.
	stays bool
}

// rows are what is read of Firecracker's metrics. Groups of single devices are left out: there is one of all of a kind.
var rows = [...]row{
	{"block", "read_bytes", hypervisor.Bytes, hypervisor.PartDisk, hypervisor.In, false},
	{"block", "write_bytes", hypervisor.Bytes, hypervisor.PartDisk, hypervisor.Out, false},
	{"block", "read_count", hypervisor.Operations, hypervisor.PartDisk, hypervisor.In, false},
	{"block", "write_count", hypervisor.Operations, hypervisor.PartDisk, hypervisor.Out, false},
	{"block", "read_agg", hypervisor.Microseconds, hypervisor.PartDisk, hypervisor.In, false},
	{"block", "write_agg", hypervisor.Microseconds, hypervisor.PartDisk, hypervisor.Out, false},
	{"block", "*_fails invalid_reqs_count", hypervisor.Failures, hypervisor.PartDisk, "", false},
	{"block", "rate_limiter_throttled_events", hypervisor.Throttled, hypervisor.PartDisk, "", false},
	{"net", "rx_bytes_count", hypervisor.Bytes, hypervisor.PartCard, hypervisor.In, false},
	{"net", "tx_bytes_count", hypervisor.Bytes, hypervisor.PartCard, hypervisor.Out, false},
	{"net", "rx_packets_count", hypervisor.Operations, hypervisor.PartCard, hypervisor.In, false},
	{"net", "tx_packets_count", hypervisor.Operations, hypervisor.PartCard, hypervisor.Out, false},
	{"net", "tap_write_agg", hypervisor.Microseconds, hypervisor.PartCard, hypervisor.Out, false},
	{"net", "*_fails tx_malformed_frames tx_spoofed_mac_count", hypervisor.Failures, hypervisor.PartCard, "", false},
	{"net", "rx_rate_limiter_throttled", hypervisor.Throttled, hypervisor.PartCard, hypervisor.In, false},
	{"net", "tx_rate_limiter_throttled", hypervisor.Throttled, hypervisor.PartCard, hypervisor.Out, false},
	{"vsock", "rx_bytes_count", hypervisor.Bytes, hypervisor.PartStream, hypervisor.In, false},
	{"vsock", "tx_bytes_count", hypervisor.Bytes, hypervisor.PartStream, hypervisor.Out, false},
	{"vsock", "rx_packets_count", hypervisor.Operations, hypervisor.PartStream, hypervisor.In, false},
	{"vsock", "tx_packets_count", hypervisor.Operations, hypervisor.PartStream, hypervisor.Out, false},
	{"vsock", "*_fails", hypervisor.Failures, hypervisor.PartStream, "", false},
	{"memory_hotplug", "plug_bytes", hypervisor.Bytes, hypervisor.PartMemory, hypervisor.In, false},
	{"memory_hotplug", "unplug_bytes", hypervisor.Bytes, hypervisor.PartMemory, hypervisor.Out, false},
	{"memory_hotplug", "*_fails", hypervisor.Failures, hypervisor.PartMemory, "", false},
	{"balloon", "free_page_report_freed", hypervisor.Bytes, hypervisor.PartReclaim, hypervisor.Out, false},
	{"balloon", "*_fails", hypervisor.Failures, hypervisor.PartReclaim, "", false},
	{"vcpu", "exit_io_in", hypervisor.Exits, hypervisor.PartPorts, hypervisor.In, false},
	{"vcpu", "exit_io_out", hypervisor.Exits, hypervisor.PartPorts, hypervisor.Out, false},
	{"vcpu", "exit_mmio_read", hypervisor.Exits, hypervisor.PartMMIO, hypervisor.In, false},
	{"vcpu", "exit_mmio_write", hypervisor.Exits, hypervisor.PartMMIO, hypervisor.Out, false},
	{"vcpu", "failures", hypervisor.Failures, hypervisor.PartProcessor, "", false},
	{"put_api_requests patch_api_requests", "*_fails", hypervisor.Failures, hypervisor.PartAPI, "", false},
	{"logger", "missed_metrics_count metrics_fails", hypervisor.Failures, hypervisor.PartMetrics, "", false},
	{"seccomp", "num_faults", hypervisor.Failures, hypervisor.PartFilter, "", true},
	{"vmm", "panic_count", hypervisor.Failures, hypervisor.PartVMM, "", true},
}

// metrics are what Firecracker has said of itself: it writes them each minute, and when it is told to.
type metrics struct {
	*vmm.Meter
	told chan error    // there is what became of the last that it said
	over chan struct{} // closed when it says no more
}

func newMetrics(flush func(context.Context) error) *metrics {
	m := &metrics{told: make(chan error, 1), over: make(chan struct{})}
	m.Meter = vmm.NewMeter(func(ctx context.Context) error { return m.ask(ctx, flush) })
	return m
}

// ask has Firecracker say them, and waits until they were read: its answer comes when they were written.
func (m *metrics) ask(ctx context.Context, flush func(context.Context) error) error {
	select {
	case <-m.told: // of before
	default:
	}
	if err := flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-m.told:
		return err
	case <-m.over:
		return fmt.Errorf("Firecracker says no more of itself: %w", errdefs.ErrUnavailable)
	}
}

// read counts what Firecracker says, a line each time, until it has ended, or says what cannot be a line.
func (m *metrics) read(from io.Reader) {
	defer close(m.over)
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxMetrics)
	for lines.Scan() {
		told, stays, err := parseMetrics(lines.Bytes())
		if err == nil {
			m.Add(told)
			m.Observe(vmm.Reading{"": stays})
		}
		select {
		case <-m.told:
		default:
		}
		m.told <- err
	}
}

// parseMetrics reads a line, which is as hostile as the guest that may have taken Firecracker over. It returns what was counted
// since the line before, and what since the start.
func parseMetrics(line []byte) (told, stays map[hypervisor.CounterName]uint64, err error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(line, &all); err != nil {
		return nil, nil, fmt.Errorf("Firecracker's metrics: %w: %w", err, errdefs.ErrInternal)
	}
	groups := map[string]map[string]json.RawMessage{}
	told, stays = map[hypervisor.CounterName]uint64{}, map[hypervisor.CounterName]uint64{}
	for _, r := range rows {
		into := told
		if r.stays {
			into = stays
		}
		for name := range strings.FieldsSeq(r.groups) {
			text, ok := all[name]
			if !ok { // another version's
				continue
			}
			group, ok := groups[name]
			if !ok {
				if err := json.Unmarshal(text, &group); err != nil {
					return nil, nil, fmt.Errorf("Firecracker's metrics: %s: %w: %w", name, err, errdefs.ErrInternal)
				}
				groups[name] = group
			}
			if err := r.count(group, into); err != nil {
				return nil, nil, fmt.Errorf("Firecracker's metrics: %s: %w: %w", name, err, errdefs.ErrInternal)
			}
		}
	}
	return told, stays, nil
}

// count adds the fields of a group that are there.
func (r row) count(group map[string]json.RawMessage, into map[hypervisor.CounterName]uint64) error {
	for field := range strings.FieldsSeq(r.fields) {
		suffix, many := strings.CutPrefix(field, "*")
		for name, text := range group {
			if name != field && !(many && strings.HasSuffix(name, suffix)) {
				continue
			}
			n, err := amount(text)
			if err != nil {
				return fmt.Errorf("%.40q: %w", name, err)
			}
			counter := hypervisor.CounterName{Kind: r.kind, Part: r.part, Direction: r.direction}
			sum := into[counter]
			into[counter] = sum + min(n, math.MaxUint64-sum)
		}
	}
	return nil
}

// amount is a number, or the sum of the times of a group.
func amount(text json.RawMessage) (uint64, error) {
	var times struct {
		Sum *uint64 `json:"sum_us"`
	}
	if n, err := strconv.ParseUint(string(text), 10, 64); err == nil {
		return n, nil
	}
	if err := json.Unmarshal(text, &times); err != nil || times.Sum == nil {
		return 0, errors.New("it is neither a number nor a sum of times")
	}
	return *times.Sum, nil
}
