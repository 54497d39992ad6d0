// Package logfields holds the keys of structured log records, so that a field has one name everywhere.
// It has no state and imports nothing of ours.
package logfields

const (
	ID        = "id"        // of what the message is about, where it has no field of its own
	Sandbox   = "sandbox"   // id
	Container = "container" // id
	Exec      = "exec"      // id of a further process in a container
	Handler   = "handler"   // runtime handler
	Image     = "image"     // reference
	Digest    = "digest"
	Share     = "share" // id of a volume
	Path      = "path"
	Socket    = "socket"
	Address   = "address"
	Streams   = "streams" // address of the streaming server
	Pod       = "pod"     // namespace/name
	PID       = "pid"
	Signal    = "signal"
	Method    = "method"
	Topic     = "topic" // of an event
	Module    = "module"
	Point     = "point" // where a crash test fails on purpose
	Mode      = "mode"
	Version   = "version"

	Reason       = "reason"
	Error        = "error"
	Code         = "code" // gRPC
	Stack        = "stack"
	Status       = "status"
	Acceleration = "acceleration"
	Hypervisor   = "hypervisor"
	Score        = "score" // of the OOM killer
	Asked        = "asked" // what a caller wanted in place of what there is
	Bytes        = "bytes"
	Offset       = "offset"
	Total        = "total"
	Sandboxes    = "sandboxes"  // how many
	Containers   = "containers" // how many

	Duration = "duration"
	Network  = "network" // duration of a part of a start
	Launch   = "launch"  // duration of a part of a start
	Drain    = "drain"   // duration
	Uptime   = "uptime"  // of a guest's kernel
)
