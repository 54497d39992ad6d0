// Package shimv1 is what the daemon asks of a VM shim beyond containerd's shim protocol.
//
// A shim serves three ttrpc services on one Unix socket: containerd's runtime/sandbox/v1 and
// runtime/task/v3, which are enough for containerd, and [Shim] below, which only pistisd and pistis-runtime
// call. Byte streams (attach, exec stdio, connections into the guest) go to a second socket beside it: each
// connection starts with one [StreamHeader] and one [StreamReply], framed as a big-endian 32-bit length and the
// message.
//
// Options that travel inside containerd's own requests as google.protobuf.Any are declared here too.
// The contract only grows; an old shim is served by a newer daemon for as long as its pod lives.
package shimv1

//go:generate protoc -I. -I../../.. --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative shim.proto
