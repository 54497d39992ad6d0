package hypervisortest

import (
	"bytes"
	"testing"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/transport"
)

// commonMemory: what host or guest writes into the memory that both have, the other reads at once.
func (s *suite) commonMemory(t *testing.T) {
	v, stop := s.start(t, s.config(t))
	defer stop()
	memory := v.(hypervisor.MemorySharer).CommonMemory()
	if memory == nil {
		if s.FixedMemory == "" {
			t.Fatal("there is none")
		}
		t.Skipf("SKIPPED: this version has none: %s", s.FixedMemory)
	}
	info, err := memory.Stat()
	if err != nil || info.Size() != transport.MemorySize {
		t.Fatalf("%v, %v", info, err)
	}
	const half = transport.MemorySize / 2
	for _, turn := range []string{"first", "second"} {
		if _, err := memory.WriteAt([]byte("host's "+turn), 0); err != nil {
			t.Fatal(err)
		}
		if got := Ask(t, v, "memory guest's %s", turn); got != "host's "+turn {
			t.Errorf("the guest reads %q, and %q was written", got, "host's "+turn)
		}
		got := make([]byte, 32)
		if _, err := memory.ReadAt(got, half); err != nil {
			t.Fatal(err)
		}
		if text, _, _ := bytes.Cut(got, []byte{0}); string(text) != "guest's "+turn {
			t.Errorf("the host reads %q, and %q was written", text, "guest's "+turn)
		}
	}
}
