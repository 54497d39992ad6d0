// Package sandboxv1 is containerd's runtime/sandbox/v1 on the wire, without gRPC.
//
// containerd's own Go package for it brings a gRPC client and server into every program that imports it, which
// costs each VM shim megabytes. Messages here have containerd's field numbers, so that both ends may use either
// package; [Service] is the name under which ttrpc finds the service. A test holds the two together.
package sandboxv1

//go:generate protoc --go_out=. --go_opt=paths=source_relative sandbox.proto

// Service is the ttrpc service name of containerd's sandbox API.
const Service = "containerd.runtime.sandbox.v1.Sandbox"
