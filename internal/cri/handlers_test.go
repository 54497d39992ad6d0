package cri

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/sandbox"
)

// TestSelectHandler goes through every combination of a request, the two annotations and what is configured.
func TestSelectHandler(t *testing.T) {
	annotation := func(values ...string) []*string {
		out := []*string{nil}
		for _, v := range values {
			out = append(out, &v)
		}
		return out
	}
	trustedValues := annotation("true", "false", "", "True", "yes")
	untrustedValues := annotation("true", "false", "", "True", "1")
	for _, requested := range []string{"", "vm", "host", "nope"} {
		for _, untrusted := range []string{"", "vm", "host", "nope"} {
			for _, a := range trustedValues {
				for _, b := range untrustedValues {
					h := Handlers{Default: "host", Untrusted: untrusted, ByName: map[string]Handler{"vm": {VM: true}, "host": {}}}
					annotations := map[string]string{}
					isTrusted := true
					if a != nil {
						annotations[TrustedAnnotation] = *a
						isTrusted = *a == "true"
					}
					if b != nil {
						annotations[UntrustedAnnotation] = *b
						isTrusted = isTrusted && (*b == "false" || *b == "")
					}
					got, err := h.Select(requested, annotations)
					name := fmt.Sprintf("requested %q, untrusted handler %q, %v: got %q, %v", requested, untrusted, annotations, got, err)
					switch {
					case requested == "nope":
						if !errdefs.IsInvalidArgument(err) {
							t.Error(name)
						}
					case requested != "":
						if got != requested || err != nil {
							t.Error(name)
						}
					case isTrusted:
						if got != "host" || err != nil {
							t.Error(name)
						}
					case untrusted == "vm":
						if got != "vm" || err != nil {
							t.Error(name)
						}
					default: // no handler, one that is no VM, or one that does not exist: never the default
						if got != "" || !errdefs.IsFailedPrecondition(err) {
							t.Error(name)
						}
					}
				}
			}
		}
	}
}

func TestHandlerReady(t *testing.T) {
	h := Handlers{Default: "vm", ByName: map[string]Handler{
		"vm": {Ready: func() error { return fmt.Errorf("no kernel: %w", errdefs.ErrFailedPrecondition) }}, "ok": {},
	}}
	if err := h.ready("ok"); err != nil {
		t.Error(err)
	}
	if err := h.ready("vm"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if err := h.ready("gone"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

func TestVMRefusesHostNamespaces(t *testing.T) {
	for name, cfg := range map[string]sandbox.Namespaces{
		"hostNetwork": {HostNetwork: true}, "hostPID": {HostPID: true}, "hostIPC": {HostIPC: true},
	} {
		if err := fitsHandler(sandbox.Config{Namespaces: cfg}, Handler{VM: true}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if err := fitsHandler(sandbox.Config{Namespaces: cfg}, Handler{}); err != nil {
			t.Error(err)
		}
	}
}
