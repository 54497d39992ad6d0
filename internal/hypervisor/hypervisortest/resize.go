package hypervisortest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

const (
	mib = 1 << 20
	// growPause is between two questions to a guest how much memory it uses.
	growPause = 20 * time.Millisecond
)

// memory is what the guest says that it has, in MiB.
func memory(t *testing.T, v hypervisor.VM, processors int) int {
	t.Helper()
	n, err := strconv.Atoi(Ask(t, v, "size %d", processors))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// resizeMemory: a running guest gets memory, uses it, and gives it back.
func (s *suite) resizeMemory(t *testing.T) {
	c := s.config(t)
	if !s.driver.Capabilities().ResizeMemory {
		c.MaxMemory = c.Memory + hypervisor.MemoryStep
		if _, err := s.driver.Start(t.Context(), c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("start with memory to be added later: %v, want InvalidArgument", err)
		}
		return
	}
	c.Memory = 256 * mib
	c.MaxMemory = c.Memory + 4*hypervisor.MemoryStep
	v, stop := s.start(t, c)
	defer stop()
	r := v.(hypervisor.MemoryResizer)
	if s.FixedMemory != "" {
		now, err := r.ResizeMemory(t.Context(), c.MaxMemory)
		if now != c.Memory || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), s.FixedMemory) {
			t.Errorf("resize: %d MiB, %v, want FailedPrecondition that says %q", now/mib, err, s.FixedMemory)
		}
		return
	}
	first := memory(t, v, c.VCPUs)
	for _, step := range []struct{ ask, want uint64 }{
		{c.Memory + 3*hypervisor.MemoryStep - mib, c.Memory + 3*hypervisor.MemoryStep}, // rounded up
		{c.MaxMemory, c.MaxMemory},
		{c.Memory + hypervisor.MemoryStep, c.Memory + hypervisor.MemoryStep},
		{mib, c.Memory},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		now, err := r.ResizeMemory(ctx, step.ask)
		cancel()
		if err != nil || now != step.want {
			t.Fatalf("resize to %d MiB: %d MiB, %v, want %d MiB", step.ask/mib, now/mib, err, step.want/mib)
		}
		// The guest brings what it has taken into use after it has told the VMM.
		added, got := int((step.want-c.Memory)/mib), -1
		for end := time.Now().Add(patience); (got < added*9/10 || got > added) && time.Now().Before(end); time.Sleep(growPause) {
			got = memory(t, v, c.VCPUs) - first
		}
		if got < added*9/10 || got > added {
			t.Errorf("with %d MiB added the guest has %d MiB more than at first", added, got)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-short.Done()
	if _, err := r.ResizeMemory(short, c.MaxMemory); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without time: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if now, err := r.ResizeMemory(ctx, c.Memory); err != nil || now != c.Memory {
		t.Errorf("after a call that had no time: %d MiB, %v", now/mib, err)
	}
	now, err := r.ResizeMemory(t.Context(), c.MaxMemory+1)
	if !errdefs.IsResourceExhausted(err) || now != c.Memory {
		t.Errorf("beyond the most: %d MiB, %v, want ResourceExhausted", now/mib, err)
	}
}

// resizeVCPUs: a running guest gets processors and gives them back.
func (s *suite) resizeVCPUs(t *testing.T) {
	c := s.config(t)
	c.MaxVCPUs = c.VCPUs + 2
	if !s.driver.Capabilities().ResizeVCPUs {
		if _, err := s.driver.Start(t.Context(), c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("start with processors to be added later: %v, want InvalidArgument", err)
		}
		return
	}
	v, stop := s.start(t, c)
	defer stop()
	r := v.(hypervisor.VCPUResizer)
	memory(t, v, c.VCPUs)
	most := c.VCPUs // that it has, whether it uses them or not
	for _, n := range []int{c.VCPUs + 1, c.VCPUs + 2, c.VCPUs, c.VCPUs + 2} {
		if n < most {
			memory(t, v, n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		now, err := r.ResizeVCPUs(ctx, n)
		cancel()
		if most = max(most, n); err != nil || now != n && (now != most || c.Accel == hypervisor.KVM) {
			t.Fatalf("resize to %d processors: %d, %v", n, now, err)
		}
		memory(t, v, n)
	}
	for _, n := range []int{c.VCPUs - 1, c.MaxVCPUs + 1} {
		if now, err := r.ResizeVCPUs(t.Context(), n); !errdefs.IsResourceExhausted(err) || now != c.MaxVCPUs {
			t.Errorf("%d processors: %d, %v, want ResourceExhausted", n, now, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.ResizeVCPUs(ctx, c.VCPUs); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// reclaim: what a guest has used and freed is the host's again.
func (s *suite) reclaim(t *testing.T) {
	c := s.config(t)
	c.Reclaim = true
	if !s.driver.Capabilities().Reclaims {
		if _, err := s.driver.Start(t.Context(), c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("start with memory to be given back: %v, want InvalidArgument", err)
		}
		return
	}
	if s.FixedMemory != "" {
		if _, err := s.driver.Start(t.Context(), c); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), s.FixedMemory) {
			t.Errorf("start with memory to be given back: %v, want FailedPrecondition that says %q", err, s.FixedMemory)
		}
		return
	}
	c.Memory = 256 * mib
	v, stop := s.start(t, c)
	defer stop()
	const used = 96
	Ask(t, v, "version") // it is up
	first := resident(t, v)
	Ask(t, v, "touch %d", used)
	most := resident(t, v)
	if most < first+used*8/10 {
		t.Logf("the guest used %d MiB, and the host gave it %d: it may have begun to give back", used, most-first)
	}
	now := most
	for deadline := time.Now().Add(patience); now > max(first, most-used)+used/3; now = resident(t, v) {
		if time.Now().After(deadline) {
			t.Fatalf("the VMM has %d MiB, %d at most and %d at first", now, most, first)
		}
		time.Sleep(100 * time.Millisecond) // a guest reports what is free when it has nothing else to do, and tells nobody
	}
	t.Logf("%d MiB at first, %d at most, %d then", first, most, now)
}

// resident is how many MiB of the host's memory the VMM has.
func resident(t *testing.T, v hypervisor.VM) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(kib), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return n >> 10
		}
	}
	t.Fatal("the VMM has no memory")
	return 0
}
