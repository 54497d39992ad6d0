package cri

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listMessage is how many bytes of items go into one message of a streamed list. Far below the 4 MiB that a client of
// gRPC takes by itself, so that the largest item, whose labels and annotations are bounded, still fits beside others.
const listMessage = 1 << 20

// sendList sends every item once, in messages of at least one item each. An empty list is a stream without messages.
func sendList[T proto.Message](items []T, send func([]T) error) error {
	size, from := 0, 0
	for i, item := range items {
		// 8 bytes are ample for what frames an item in a list.
		n := proto.Size(item) + 8
		if i > from && size+n > listMessage {
			if err := send(items[from:i]); err != nil {
				return err
			}
			size, from = 0, i
		}
		size += n
	}
	if from == len(items) {
		return nil
	}
	return send(items[from:])
}

// StreamPodSandboxes is ListPodSandbox in several messages.
func (c *sandboxCalls) StreamPodSandboxes(req *runtime.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]) error {
	return sendList(c.list(stream.Context(), req.GetFilter()), func(part []*runtime.PodSandbox) error {
		return stream.Send(&runtime.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

// StreamContainers is ListContainers in several messages.
func (c *containerCalls) StreamContainers(req *runtime.StreamContainersRequest, stream grpc.ServerStreamingServer[runtime.StreamContainersResponse]) error {
	return sendList(c.list(stream.Context(), req.GetFilter()), func(part []*runtime.Container) error {
		return stream.Send(&runtime.StreamContainersResponse{Containers: part})
	})
}

// StreamContainerStats is ListContainerStats in several messages.
func (c *statsCalls) StreamContainerStats(req *runtime.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamContainerStatsResponse]) error {
	list, err := c.containerList(stream.Context(), req.GetFilter())
	if err != nil {
		return fmt.Errorf("statistics of containers: %w", err)
	}
	return sendList(list, func(part []*runtime.ContainerStats) error {
		return stream.Send(&runtime.StreamContainerStatsResponse{ContainerStats: part})
	})
}

// StreamPodSandboxStats is ListPodSandboxStats in several messages.
func (c *statsCalls) StreamPodSandboxStats(req *runtime.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxStatsResponse]) error {
	list, err := c.sandboxList(stream.Context(), req.GetFilter())
	if err != nil {
		return fmt.Errorf("statistics of pods: %w", err)
	}
	return sendList(list, func(part []*runtime.PodSandboxStats) error {
		return stream.Send(&runtime.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

// StreamImages is ListImages in several messages.
func (s *imageServer) StreamImages(req *runtime.StreamImagesRequest, stream grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	list, err := s.list(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return sendList(list, func(part []*runtime.Image) error {
		return stream.Send(&runtime.StreamImagesResponse{Images: part})
	})
}
