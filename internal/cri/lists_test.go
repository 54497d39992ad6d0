package cri

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/task"
)

func TestSendList(t *testing.T) {
	for name, sizes := range map[string][]int{
		"empty":              {},
		"one":                {10},
		"small ones":         {10, 20, 30},
		"fills a message":    {listMessage / 2, listMessage / 2, 1},
		"one that is larger": {1, 2 * listMessage, 1},
		"large ones alone":   {2 * listMessage, 2 * listMessage},
	} {
		t.Run(name, func(t *testing.T) {
			var items, got []*runtime.Container
			for i, size := range sizes {
				items = append(items, &runtime.Container{Id: fmt.Sprint(i), ImageRef: strings.Repeat("x", size)})
			}
			err := sendList(items, func(part []*runtime.Container) error {
				if len(part) == 0 {
					t.Error("a message without an item")
				}
				if size := proto.Size(&runtime.StreamContainersResponse{Containers: part}); len(part) > 1 && size > listMessage {
					t.Errorf("a message of %d items and %d bytes", len(part), size)
				}
				got = append(got, part...)
				return nil
			})
			if err != nil || len(got) != len(items) {
				t.Fatalf("%d of %d items, %v", len(got), len(items), err)
			}
			for i := range got {
				if got[i] != items[i] {
					t.Errorf("item %d is %s", i, got[i].Id)
				}
			}
		})
	}
	gone := errors.New("the client has gone")
	calls := 0
	err := sendList([]*runtime.Container{{}, {ImageRef: strings.Repeat("x", listMessage)}}, func([]*runtime.Container) error { calls++; return gone })
	if !errors.Is(err, gone) || calls != 1 {
		t.Errorf("%d messages, %v", calls, err)
	}
}

// collect reads a stream to its end.
func collect[T any, I any](t *testing.T, stream grpc.ServerStreamingClient[T], err error, items func(*T) []I) (list []I, messages int) {
	t.Helper()
	for err == nil {
		var part *T
		if part, err = stream.Recv(); err == nil {
			list = append(list, items(part)...)
			messages++
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return list, messages
}

// TestStreamedLists: what is streamed is what the call with one answer has.
func TestStreamedLists(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	var podID string
	for i := range 3 {
		podID = h.pod(fmt.Sprint("p", i))
		id := h.container(podID, "c", true)
		h.engine.stats[podID] = task.Stats{At: time.Now(), Containers: []task.ContainerStats{{ID: id}}}
	}
	// More than one message's worth.
	h.engine.mu.Lock()
	for _, p := range h.engine.pods {
		p.Config.Annotations = map[string]string{"note": strings.Repeat("x", listMessage-1000)}
	}
	h.engine.mu.Unlock()

	pods, err := h.runtime.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{})
	streamed, messages := collect(t, pods, err, (*runtime.StreamPodSandboxesResponse).GetPodSandboxes)
	list, err := h.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil || messages != 3 || !proto.Equal(list, &runtime.ListPodSandboxResponse{Items: streamed}) {
		t.Errorf("%d pods in %d messages, %v", len(streamed), messages, err)
	}
	pods, err = h.runtime.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{Filter: &runtime.PodSandboxFilter{Id: podID}})
	if streamed, _ := collect(t, pods, err, (*runtime.StreamPodSandboxesResponse).GetPodSandboxes); len(streamed) != 1 || streamed[0].Id != podID {
		t.Errorf("filtered: %v", streamed)
	}
	ctrs, err := h.runtime.StreamContainers(ctx, &runtime.StreamContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: podID}})
	if list, messages := collect(t, ctrs, err, (*runtime.StreamContainersResponse).GetContainers); len(list) != 1 || messages != 1 || list[0].PodSandboxId != podID {
		t.Errorf("containers: %v in %d messages", list, messages)
	}
	stats, err := h.runtime.StreamContainerStats(ctx, &runtime.StreamContainerStatsRequest{})
	if list, _ := collect(t, stats, err, (*runtime.StreamContainerStatsResponse).GetContainerStats); len(list) != 3 {
		t.Errorf("statistics of containers: %v", list)
	}
	podStats, err := h.runtime.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{Filter: &runtime.PodSandboxStatsFilter{Id: podID}})
	if list, _ := collect(t, podStats, err, (*runtime.StreamPodSandboxStatsResponse).GetPodSandboxStats); len(list) != 1 || list[0].Attributes.Id != podID {
		t.Errorf("statistics of pods: %v", list)
	}
	described, err := h.runtime.ListMetricDescriptors(ctx, &runtime.ListMetricDescriptorsRequest{})
	if err != nil || len(described.Descriptors) == 0 {
		t.Errorf("%v, %v", described, err)
	}
	listed, err := h.runtime.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
	if err != nil || len(listed.PodMetrics) != 3 {
		t.Errorf("%v, %v", listed, err)
	}
	metrics, err := h.runtime.StreamPodSandboxMetrics(ctx, &runtime.StreamPodSandboxMetricsRequest{})
	if list, _ := collect(t, metrics, err, (*runtime.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics); len(list) != 3 || len(list[0].ContainerMetrics) != 1 {
		t.Errorf("metrics: %v", list)
	}
	images, err := h.images.StreamImages(ctx, &runtime.StreamImagesRequest{})
	if list, _ := collect(t, images, err, (*runtime.StreamImagesResponse).GetImages); len(list) == 0 {
		t.Error("no images")
	}
	images, err = h.images.StreamImages(ctx, &runtime.StreamImagesRequest{Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: "nope"}}})
	if list, messages := collect(t, images, err, (*runtime.StreamImagesResponse).GetImages); len(list) != 0 || messages != 0 {
		t.Errorf("images that are not there: %v", list)
	}
}
