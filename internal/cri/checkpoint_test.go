package cri

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCheckpointContainer(t *testing.T) {
	h := newHarness(t)
	id := h.container(h.pod("a"), "c", true)
	for _, tt := range []struct {
		req  *runtime.CheckpointContainerRequest
		want codes.Code
	}{
		{&runtime.CheckpointContainerRequest{ContainerId: id, Location: "/x/a.tar"}, codes.OK},
		{&runtime.CheckpointContainerRequest{ContainerId: id}, codes.InvalidArgument},
		{&runtime.CheckpointContainerRequest{ContainerId: id, Location: "/x\x00"}, codes.InvalidArgument},
		{&runtime.CheckpointContainerRequest{ContainerId: id, Location: "/x", Timeout: -1}, codes.InvalidArgument},
		{&runtime.CheckpointContainerRequest{ContainerId: "none", Location: "/x"}, codes.NotFound},
		{&runtime.CheckpointContainerRequest{Location: "/x"}, codes.InvalidArgument},
	} {
		_, err := h.runtime.CheckpointContainer(t.Context(), tt.req)
		wantCode(t, err, tt.want)
	}
	resp, err := h.runtime.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/x/a.tar ", `"config.dump":{"id":"` + id, `"status.dump":{"id":"` + id} {
		if !strings.Contains(resp.Status.Message, want) {
			t.Errorf("%q is not in %s", want, resp.Status.Message)
		}
	}
}
