package agent

import (
	"context"
	"fmt"
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

// Resize implements agentv1.AgentService. Memory comes and goes by itself.
func (a *Agent) Resize(ctx context.Context, req *agentv1.ResizeRequest) (*agentv1.ResizeResponse, error) {
	if req.Vcpus < 1 || req.Vcpus > maxProcessors {
		return nil, invalid("%d processors: 1 to %d are possible", req.Vcpus, maxProcessors)
	}
	a.resizing.Lock()
	defer a.resizing.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, processorTimeout, fmt.Errorf("the kernel has not brought them up within %s: %w", processorTimeout, errdefs.ErrFailedPrecondition))
	defer cancel()
	used, err := processors.Use(ctx, processors.Dir, int(req.Vcpus))
	if err != nil {
		return nil, err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("sysinfo: %w", err)
	}
	return &agentv1.ResizeResponse{Vcpus: uint32(used), MemoryBytes: info.Totalram * uint64(info.Unit)}, nil
}
