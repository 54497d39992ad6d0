package share

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestLateReport: the report on an order that was given up is not taken for that on the next.
func TestLateReport(t *testing.T) {
	ours, end, err := socketpair(unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.FileConn(end)
	end.Close()
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{control: ours}
	defer ours.Close()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.hear(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("given up: %v", err)
	}
	for _, r := range []report{{Number: 1, Error: "late"}, {Number: 2}, {Number: 3, Error: "no"}} {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := theirs.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.hear(t.Context(), 2); err != nil {
		t.Errorf("the next: %v", err)
	}
	if err := h.hear(t.Context(), 3); err == nil || err.Error() != "no" {
		t.Errorf("a refusal: %v", err)
	}
	theirs.Close()
	if err := h.hear(t.Context(), 4); !errdefs.IsUnavailable(err) {
		t.Errorf("after the end: %v", err)
	}
}
