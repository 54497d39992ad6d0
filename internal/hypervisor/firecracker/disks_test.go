package firecracker

import (
	"fmt"
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

// TestVersions: what an older one cannot is done otherwise, or said.
func TestVersions(t *testing.T) {
	for version, want := range map[string]abilities{
		"1.8.0": {}, "1.12.1": {}, "1.13.1": {early: true}, "1.14.0": {memory: true, early: true}, "1.15": {memory: true, early: true},
		"1.16.1": {plug: true, memory: true, early: true}, "2.0.0": {plug: true, memory: true, early: true},
	} {
		want.version = version
		if got := abilitiesOf(version); got != want {
			t.Errorf("%s: %+v, want %+v", version, got, want)
		}
	}
	cfg := hypervisor.Config{NICs: make([]hypervisor.NIC, 1)}
	if n := abilitiesOf("1.16.0").placeholders(cfg); n != 0 {
		t.Errorf("%d placeholders where disks can be plugged", n)
	}
	n := abilitiesOf("1.15.0").placeholders(cfg)
	d := newPlaceholders(n)
	if n != 12 || len(d.placeholders()) != n {
		t.Errorf("%d placeholders, %d drives", n, len(d.placeholders()))
	}
	for i := range n - writablePlaceholders {
		if _, spare, err := d.take(hypervisor.Disk{ID: fmt.Sprint(i), ReadOnly: true}); !spare || err != nil {
			t.Errorf("layer %d: %v, %v", i, spare, err)
		}
	}
	if _, _, err := d.take(hypervisor.Disk{ID: "more", ReadOnly: true}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one layer more: %v", err)
	}
}
