package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/event"
)

// events is where the engine tells what happens. The state of an event is what DescribeEvents made of it.
type events interface {
	Subscribe() (events <-chan event.Event, cancel func())
}

// eventCalls is the call that follows events.
type eventCalls struct {
	events events
	done   <-chan struct{}
}

var eventTypes = map[event.Kind]runtime.ContainerEventType{
	event.Created: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
	event.Started: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
	event.Stopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	event.Deleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// eventState is what a pod looked like when something happened to it or to one of its containers.
type eventState struct {
	pod        *runtime.PodSandboxStatus
	containers []*runtime.ContainerStatus
}

// DescribeEvents returns what the broker of events needs to know how things look.
func DescribeEvents(sandboxes sandboxReader, containers containerReader) func(event.Event) any {
	return func(e event.Event) any {
		ctx := context.Background() // in memory, nothing waits
		pod, err := sandboxes.Status(ctx, e.SandboxID)
		if err != nil {
			return eventState{} // it has gone; the id is all that can be told
		}
		return eventState{pod: sandboxStatus(pod), containers: statusesOf(containers.List(ctx), e.SandboxID)}
	}
}

// GetContainerEvents sends events until the client or the daemon goes. The header comes when nothing is missed any more:
// a client that waits for it before it lists sees every change in the list, as an event, or both.
func (c *eventCalls) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	ch, cancel := c.events.Subscribe()
	defer cancel()
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case <-c.done:
			return fmt.Errorf("events: the daemon is going down: %w", errdefs.ErrUnavailable)
		case e, ok := <-ch:
			if !ok {
				return fmt.Errorf("events: the client is too slow and has missed some; list, and ask anew: %w", errdefs.ErrResourceExhausted)
			}
			if err := stream.Send(response(e)); err != nil {
				return err
			}
		}
	}
}

func response(e event.Event) *runtime.ContainerEventResponse {
	state, _ := e.State.(eventState) // nothing, for a broker that describes nothing
	return &runtime.ContainerEventResponse{
		ContainerId: e.ID, ContainerEventType: eventTypes[e.Kind], CreatedAt: e.At.UnixNano(),
		PodSandboxStatus: state.pod, ContainersStatuses: state.containers,
	}
}
