// Package agentv1 is the contract between the host and pistis-agent, the first process of a guest.
//
// Control calls are ttrpc over the stream that [ControlPort] names; bytes (stdio, forwarded
// connections) travel on streams of their own to [StreamPort], each of which starts with one
// [StreamHeader] from the host and one [StreamReply] from the guest (see stream.go for the framing).
//
// The guest is not trusted by the host: everything it answers is bounded and parsed defensively.
// The contract only grows: a field keeps its number and meaning, what is new is announced by
// [HelloResponse].Features. [ProtocolVersion] changes only when an old peer could misunderstand a new one.
//
// The package holds generated code, constants and framing; it must not import anything else of ours but api/stats/v1.
package agentv1

//go:generate protoc -I. -I../../.. --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative agent.proto
