package agentclient_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

// TestOldAgent: an agent of the same protocol version that lacks what came later, and says things that are not known
// here, can be used for what it has.
func TestOldAgent(t *testing.T) {
	later := map[string]bool{"Stats": true, "Update": true, "Pause": true, "Resume": true, "Pids": true, "ResizeTerminal": true, "SetClock": true, "AdjustClock": true}
	a := &vmtest.Agent{
		Intercept: func(method string) error {
			if later[method] {
				return status.Error(codes.Unimplemented, "method "+method)
			}
			return nil
		},
		Answer: func(_ string, answer any) any {
			if hello, ok := answer.(*agentv1.HelloResponse); ok {
				hello.Reset()
				hello.Version = agentv1.ProtocolVersion
			}
			m := answer.(proto.Message)
			m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 12345, protowire.VarintType), 1))
			return m
		},
	}
	c, err := connect(t, a, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if info := c.Info(); len(info.Features) != 0 || info.AgentVersion != "" || info.Kernel != "" || info.Uptime != 0 {
		t.Errorf("info = %+v", info)
	}
	if err := c.ConfigureSandbox(t.Context(), &agentv1.ConfigureSandboxRequest{Hostname: "pod"}); err != nil {
		t.Error(err)
	}
	_, _, err = c.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{Id: "c2", PidNamespace: &agentv1.PIDNamespace{}})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a field that the agent would ignore: %v", err)
	}
	for what, call := range map[string]func() error{
		"stats":  func() error { _, err := c.Stats(t.Context()); return err },
		"update": func() error { return c.Update(t.Context(), "c1", []byte("{}")) },
		"pause":  func() error { return c.Pause(t.Context(), "c1") },
		"resume": func() error { return c.Resume(t.Context(), "c1") },
		"pids":   func() error { _, err := c.Pids(t.Context(), "c1"); return err },
		"resize": func() error { return c.ResizeTerminal(t.Context(), task.ID{Container: "c1"}, 80, 25) },
		"clock":  func() error { return c.SetClock(t.Context(), &agentv1.SetClockRequest{}) },
		"adjust": func() error { _, err := c.AdjustClock(t.Context(), 0); return err },
	} {
		if err := call(); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s = %v, want not implemented", what, err)
		}
	}
}
