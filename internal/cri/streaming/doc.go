// Package streaming serves exec, attach and port-forward streams over HTTP, as SPDY and as WebSocket.
//
// The CRI hands out a URL with a random token that can be used once; whoever has it gets the stream. Most protocols are
// k8s.io/cri-streaming's; version 5 of the WebSocket protocol, on which a client can close stdin, and port-forward
// through a tunnel in a WebSocket are this package's. It connects them with the engine: processes of containers, and
// connections that are dialled inside a sandbox.
//
// A [Server] owns its listener, its connections and the goroutines that serve them, from Listen to Close. Its methods
// may be called from any goroutine. It must not import mechanisms; the engine is seen through small interfaces.
package streaming
