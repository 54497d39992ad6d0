package cgroup

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestPath(t *testing.T) {
	for parent, want := range map[string]string{
		"pistis":                        "pistis/x",
		"/kubepods/burstable/pod1":      "kubepods/burstable/pod1/x",
		"kubepods-burstable-pod1.slice": "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/x",
		"/system.slice/kubelet.service": "system.slice/kubelet.service/x",
		"../../etc":                     "etc/x",
	} {
		if got := Path(parent, "x"); got != want {
			t.Errorf("%q: got %q, want %q", parent, got, want)
		}
	}
}

func TestSlice(t *testing.T) {
	for parent, want := range map[string]string{"pistis": "pistis.slice", "node-pods.slice": "node-pods.slice"} {
		if got := SliceName(parent); got != want {
			t.Errorf("%q: got %q, want %q", parent, got, want)
		}
		if err := CheckSlice(parent); err != nil {
			t.Errorf("%q: %v", parent, err)
		}
	}
	for _, name := range []string{"", "-", "a--b", "a/b", "-a", "a:b", "a-.slice"} {
		if err := CheckSlice(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCheckParent(t *testing.T) {
	for _, test := range []struct {
		parent        string
		systemd, fits bool
	}{
		{"", false, true}, {"", true, true},
		{"/kubepods/pod1", false, true}, {"/kubepods/pod1", true, false},
		{"/../x", false, false}, {"a/..", false, false},
		{"kubepods-pod1.slice", true, true}, {"/kubepods.slice/kubepods-pod1.slice", false, false},
	} {
		if err := CheckParent(test.parent, test.systemd); (err == nil) != test.fits || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q, systemd %t: %v", test.parent, test.systemd, err)
		}
	}
}
