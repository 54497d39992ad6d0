package firecracker

import (
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// TestDrives: a device serves one disk after the other, but only those of its access.
func TestDrives(t *testing.T) {
	d := newDrives(2)
	take := func(id string, readOnly bool, name string, spare bool) {
		t.Helper()
		v, isSpare, err := d.take(hypervisor.Disk{ID: id, ReadOnly: readOnly})
		if err != nil || v.name != name || isSpare != spare {
			t.Errorf("%s: %+v, spare %v, %v, want %s, %v", id, v, isSpare, err, name, spare)
		}
	}
	take("a", true, "drive1", false)
	d.forget("a") // refused
	take("a", true, "drive2", false)
	take("b", false, "drive3", false)
	if _, _, err := d.take(hypervisor.Disk{ID: "c"}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a third: %v", err)
	}
	d.giveBack("a")
	if _, _, err := d.take(hypervisor.Disk{ID: "c"}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a writable disk where one is left that can only be read: %v", err)
	}
	take("c", true, "drive2", true)
	d.giveBack("b")
	take("d", false, "drive3", true)
}
