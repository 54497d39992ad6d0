// Package monitor is the daemon's side of container monitors, and what both sides say to each other.
//
// A monitor is one process per pod on the host's kernel (cmd/pistis-monitor; its inside is internal/monitor/server). It
// runs the OCI runtime, is the reaper of what that leaves behind, and keeps what must outlive the daemon: the containers'
// stdio and logs, and exit codes until they are deleted. It ends no container when it dies; [Cleanup] does.
//
// A [Client] speaks to one monitor. Each call is a connection of its own to the socket in the pod's bundle: a request and
// a reply ([Conn]), descriptors beside them; closing the connection gives a call up. The data of an exec never passes
// through the monitor: the client makes the pipes, or is given the terminal, and the client alone owns them.
//
// Clients may be used from any goroutine. The package is linked into every monitor, so that it must not import protobuf,
// gRPC, ttrpc, net/http or containerd's core.
package monitor
