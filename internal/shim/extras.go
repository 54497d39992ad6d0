package shim

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/durationpb"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/version"
)

// contractVersion is that of api/shim/v1.
const contractVersion = 1

// extras serves api/shim/v1.
type extras struct{ s *Service }

// Info says what the shim and its VM are.
func (x extras) Info(context.Context, *shimv1.InfoRequest) (*shimv1.InfoResponse, error) {
	return &shimv1.InfoResponse{
		Version: contractVersion, Features: []string{shimv1.FeaturePIDNamespaces, shimv1.FeatureResize, shimv1.FeatureConsole}, ShimVersion: version.Version, SandboxId: x.s.options.ID,
		StreamSocket: x.s.options.Bundle.StreamSocket(), Vm: x.s.describe(), ShimPid: uint32(os.Getpid()),
	}, nil
}

// describe tells about the VM; nil before there was one.
func (s *Service) describe() *shimv1.VM {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vm == nil {
		if s.exit.Reason == "" {
			return nil
		}
		return &shimv1.VM{Exit: s.exit.Reason}
	}
	o, info := s.asked.Options.GetVm(), s.vm.Agent().Info()
	size := s.vm.Size()
	m := &shimv1.VM{
		Hypervisor: o.Hypervisor, Version: s.vm.Version(), Acceleration: o.Acceleration, VmmPid: uint32(s.vm.PID()),
		Kernel: info.Kernel, AgentVersion: info.AgentVersion, Vcpus: uint32(size.VCPUs), MemoryBytes: size.Memory, Exit: s.exit.Reason,
	}
	for _, p := range s.vm.Phases() {
		m.Phases = append(m.Phases, &shimv1.Phase{Name: p.Name, Duration: durationpb.New(p.Duration)})
	}
	return m
}

// Inspect tells what the Task service has no words for.
func (x extras) Inspect(_ context.Context, r *shimv1.InspectRequest) (*shimv1.InspectResponse, error) {
	_, p, err := x.s.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &shimv1.InspectResponse{
		User:      &shimv1.User{Uid: p.user.UID, Gid: p.user.GID, AdditionalGids: p.user.AdditionalGIDs},
		OomKilled: p.exit.OOMKilled, Reason: p.exit.Reason,
	}, nil
}

// ReopenLog opens a container's log anew.
func (x extras) ReopenLog(_ context.Context, r *shimv1.ReopenLogRequest) (*shimv1.Empty, error) {
	c, err := x.s.container(r.Container)
	if err != nil {
		return nil, err
	}
	if state, _, _ := c.snapshot(); state == processCreating {
		return nil, fmt.Errorf("reopen log of container %s: it is being created: %w", r.Container, errdefs.ErrFailedPrecondition)
	}
	if c.log == nil {
		return nil, fmt.Errorf("reopen log of container %s: it writes none: %w", r.Container, errdefs.ErrFailedPrecondition)
	}
	return &shimv1.Empty{}, c.log.Reopen()
}
