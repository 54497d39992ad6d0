package shim_test

import (
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

func execRequest(id, exec string, process []byte, in, out string) *taskapi.ExecProcessRequest {
	return &taskapi.ExecProcessRequest{ID: id, ExecID: exec, Stdin: in, Stdout: out, Spec: &anypb.Any{Value: process}}
}

func closeRequest(id, exec string) *taskapi.CloseIORequest {
	return &taskapi.CloseIORequest{ID: id, ExecID: exec, Stdin: true}
}
