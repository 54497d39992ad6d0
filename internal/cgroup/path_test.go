package cgroup

import "testing"

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
