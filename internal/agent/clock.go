package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// SetClock implements agentv1.AgentService.
func (a *Agent) SetClock(_ context.Context, req *agentv1.SetClockRequest) (*agentv1.Empty, error) {
	if !req.Clock.IsValid() {
		return nil, invalid("set clock: no valid time")
	}
	return &agentv1.Empty{}, setClock(req.Clock.AsTime())
}

func setClock(t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err == nil {
		err = unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	}
	if err != nil {
		return fmt.Errorf("set clock to %v: %w", t, err)
	}
	return nil
}

// AdjustClock implements agentv1.AgentService.
func (a *Agent) AdjustClock(_ context.Context, req *agentv1.AdjustClockRequest) (*agentv1.AdjustClockResponse, error) {
	if req.By != nil {
		by := req.By.AsDuration()
		if !req.By.IsValid() || by.Abs() > time.Second {
			return nil, invalid("adjust clock by %v: at most a second is possible", by)
		}
		// The kernel makes up for it at half a millisecond a second. What was left of an earlier difference is forgotten.
		const singleShot = 0x8001 // ADJ_OFFSET_SINGLESHOT
		if _, err := unix.Adjtimex(&unix.Timex{Modes: singleShot, Offset: by.Microseconds()}); err != nil {
			return nil, fmt.Errorf("adjust clock by %v: %w", by, err)
		}
	}
	return &agentv1.AdjustClockResponse{Clock: timestamppb.Now()}, nil
}
