package agent

import (
	"context"
	"fmt"
	goruntime "runtime"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/processors"
)

const (
	// maxProcessors is what x86's kernels have at most.
	maxProcessors = 8192
	// processorTimeout bounds the wait for one that was plugged.
	processorTimeout = 30 * time.Second
)

// errOvertaken is what a change is told when the next one comes.
var errOvertaken = fmt.Errorf("another number of processors is asked for meanwhile: %w", errdefs.ErrAborted)

// Resize implements agentv1.AgentService. Memory comes and goes by itself.
func (a *Agent) Resize(ctx context.Context, req *agentv1.ResizeRequest) (*agentv1.ResizeResponse, error) {
	if req.Vcpus < 1 || req.Vcpus > maxProcessors {
		return nil, invalid("%d processors: 1 to %d are possible", req.Vcpus, maxProcessors)
	}
	used, err := a.useProcessors(ctx, processors.Dir, int(req.Vcpus))
	if err != nil {
		return nil, err
	}
	goruntime.GOMAXPROCS(used + a.Eager) // Go does not do it, once it was told how many
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("sysinfo: %w", err)
	}
	return &agentv1.ResizeResponse{Vcpus: uint32(used), MemoryBytes: info.Totalram * uint64(info.Unit)}, nil
}

// useProcessors makes one change at a time. The host asks for one after the other: one that still waits for processors when the
// next comes is one that the host has given up, of which it cannot tell.
func (a *Agent) useProcessors(ctx context.Context, dir string, n int) (int, error) {
	free, err := a.resizing.AcquireToEnd(ctx, errOvertaken)
	if err != nil {
		return 0, err
	}
	free()
	ctx, free, err = a.resizing.AcquireYielding(ctx)
	if err != nil {
		return 0, err
	}
	defer free()
	ctx, cancel := context.WithTimeoutCause(ctx, processorTimeout, fmt.Errorf("the kernel has not brought them up within %s: %w", processorTimeout, errdefs.ErrFailedPrecondition))
	defer cancel()
	return processors.Use(ctx, dir, n)
}
