package image

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestPins(t *testing.T) {
	tests := []struct {
		pattern string
		is, not []string
	}{
		{"busybox", []string{"docker.io/library/busybox:latest"}, []string{"docker.io/library/busybox:1"}},
		{"registry.k8s.io/pause*", []string{"registry.k8s.io/pause:3.9", "registry.k8s.io/pause-windows:1"}, []string{"other/registry.k8s.io/pause:3.9"}},
		{"*pause*", []string{"registry.k8s.io/pause:3.9"}, []string{"registry.k8s.io/paus:1"}},
		{"*", []string{"a"}, nil},
	}
	for _, test := range tests {
		p, err := parsePin(test.pattern)
		if err != nil {
			t.Fatal(err)
		}
		s := &Service{pinned: []pin{p}}
		for _, name := range test.is {
			if !s.isPinned(name) {
				t.Errorf("%s does not pin %s", test.pattern, name)
			}
		}
		for _, name := range test.not {
			if s.isPinned(name) {
				t.Errorf("%s pins %s", test.pattern, name)
			}
		}
	}
	for _, bad := range []string{"*pause", "a*b", "A:b:c", "", "***"} {
		if _, err := parsePin(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
