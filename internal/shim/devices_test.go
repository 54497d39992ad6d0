package shim

import (
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestTakeAccess(t *testing.T) {
	number := func(n int64) *int64 { return &n }
	rule := func(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: number(major), Minor: number(minor), Access: access}
	}
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"}, rule(true, "b", 7, 1, "r"), rule(true, "c", 7, 0, "rw"), rule(true, "b", 7, 0, "rm"), rule(false, "b", 7, 0, "w"),
	}}
	if got := takeAccess(r, 7, 0); got != "rm" {
		t.Errorf("got %q", got)
	}
	if len(r.Devices) != 4 {
		t.Errorf("left: %v", r.Devices)
	}
	if got := takeAccess(r, 8, 0); got != "rwm" {
		t.Errorf("without a rule: %q", got)
	}
}

func TestTakeBlockDevices(t *testing.T) {
	linux := &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}}
	if taken, err := takeBlockDevices(linux); err != nil || len(taken) != 0 || len(linux.Devices) != 1 {
		t.Errorf("%v, %v, left %v", taken, err, linux.Devices)
	}
	linux.Devices = append(linux.Devices, specs.LinuxDevice{Path: "/dev/x", Type: "b", Major: 4095, Minor: 1})
	if _, err := takeBlockDevices(linux); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a device that is not there: %v", err)
	}
}
