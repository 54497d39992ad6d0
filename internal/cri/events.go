package cri

import (
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/event"
)

// events is where the engine tells what happens.
type events interface {
	Subscribe() (events <-chan event.Event, cancel func())
}

// eventCalls is the call that follows events.
type eventCalls struct {
	events     events
	sandboxes  sandboxReader
	containers containerReader
	done       <-chan struct{}
}

var eventTypes = map[event.Kind]runtime.ContainerEventType{
	event.Created: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
	event.Started: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
	event.Stopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	event.Deleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// GetContainerEvents sends events until the client or the daemon goes.
func (c *eventCalls) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	ch, cancel := c.events.Subscribe()
	defer cancel()
	// Now the client can know that it misses nothing from here on.
	if err := stream.SendHeader(nil); err != nil {
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
			if err := stream.Send(c.response(stream, e)); err != nil {
				return err
			}
		}
	}
}

// response adds what the pod looks like by now; a pod that has gone meanwhile is left out.
func (c *eventCalls) response(stream grpc.ServerStreamingServer[runtime.ContainerEventResponse], e event.Event) *runtime.ContainerEventResponse {
	resp := &runtime.ContainerEventResponse{ContainerId: e.ID, ContainerEventType: eventTypes[e.Kind], CreatedAt: e.At.UnixNano()}
	pod, err := c.sandboxes.Status(stream.Context(), e.SandboxID)
	if err != nil {
		return resp
	}
	resp.PodSandboxStatus = sandboxStatus(pod)
	resp.ContainersStatuses = statusesOf(c.containers.List(stream.Context()), e.SandboxID)
	return resp
}
