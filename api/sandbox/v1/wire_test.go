package sandboxv1_test

import (
	"testing"

	upstream "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"google.golang.org/protobuf/reflect/protoreflect"

	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
)

// TestWire compares every message with containerd's: names, numbers and kinds of all fields.
func TestWire(t *testing.T) {
	theirs := upstream.File_runtime_sandbox_v1_sandbox_proto.Messages()
	ours := sandboxv1.File_sandbox_proto.Messages()
	for i := range ours.Len() {
		m := ours.Get(i)
		if m.Name() == "Mount" || m.Name() == "Platform" {
			continue // containerd keeps them in another file; compared as fields below
		}
		compare(t, m, theirs.ByName(m.Name()))
	}
}

func compare(t *testing.T, ours, theirs protoreflect.MessageDescriptor) {
	t.Helper()
	if theirs == nil {
		t.Errorf("%s: containerd has no such message", ours.Name())
		return
	}
	if a, b := ours.Fields().Len(), theirs.Fields().Len(); a != b {
		t.Errorf("%s: %d fields, containerd's has %d", ours.Name(), a, b)
	}
	for i := range ours.Fields().Len() {
		f := ours.Fields().Get(i)
		g := theirs.Fields().ByNumber(f.Number())
		if g == nil || g.Name() != f.Name() || g.Kind() != f.Kind() || g.Cardinality() != f.Cardinality() {
			t.Errorf("%s.%s differs from containerd's: %v", ours.Name(), f.Name(), g)
			continue
		}
		if f.Kind() == protoreflect.MessageKind && f.Message().ParentFile() == ours.ParentFile() && !f.IsMap() {
			compare(t, f.Message(), g.Message())
		}
	}
}
