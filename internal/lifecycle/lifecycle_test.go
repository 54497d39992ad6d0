package lifecycle

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type (
	state string
	op    string
)

func TestNext(t *testing.T) {
	table := Table[state, op]{"off": {"push": "on"}, "on": {"push": "off"}}
	if next, err := table.Next("off", "push"); err != nil || next != "on" {
		t.Errorf("got %q, %v", next, err)
	}
	for _, from := range []state{"off", "elsewhere"} {
		next, err := table.Next(from, "melt")
		var refusal *Refusal
		if !errors.As(err, &refusal) || !errdefs.IsFailedPrecondition(err) || next != from {
			t.Errorf("from %s: got %q, %v", from, next, err)
		}
		if msg := err.Error(); !strings.Contains(msg, "melt") || !strings.Contains(msg, string(from)) {
			t.Errorf("%q names neither the state nor the operation", msg)
		}
	}
}
