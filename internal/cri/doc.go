// Package cri is the CRI v1 server: RuntimeService and ImageService as gRPC.
//
// Every call does three things: validate the request, call the engine, convert the answer. The engine is seen
// through small interfaces that stand beside their users; a group of calls (sandboxes, containers, processes,
// statistics, images, events, the runtime itself) is one type with only the interfaces that it needs, in a file of
// its own. Errors are containerd errdefs classes throughout and become gRPC codes in the interceptors alone.
//
// Nothing of a request is silently ignored: convert takes configurations, field by field.
//
// The package owns no state but the last CPU samples of its statistics. Its types are safe for concurrent use.
// It must not import mechanisms (image stores, networks, shims, hypervisors): cmd injects them.
package cri
