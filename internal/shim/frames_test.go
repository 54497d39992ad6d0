package shim

import (
	"testing"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/stdio"
)

// TestFrameKinds: stdio has constants of its own, so that who uses it needs no protobuf; the contract has theirs.
func TestFrameKinds(t *testing.T) {
	for kind, want := range map[stdio.FrameKind]shimv1.FrameKind{
		stdio.KindStdin: shimv1.FrameKind_STDIN, stdio.KindStdout: shimv1.FrameKind_STDOUT, stdio.KindStderr: shimv1.FrameKind_STDERR,
		stdio.KindCloseStdin: shimv1.FrameKind_CLOSE_STDIN, stdio.KindEOF: shimv1.FrameKind_EOF, stdio.KindError: shimv1.FrameKind_ERROR,
	} {
		if int32(kind) != int32(want) {
			t.Errorf("%s is %d here and %d in the contract", want, kind, want)
		}
	}
	if len(shimv1.FrameKind_name) != int(stdio.KindError)+1 {
		t.Errorf("the contract has %d kinds", len(shimv1.FrameKind_name))
	}
}
