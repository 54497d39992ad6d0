// Package logfields holds the keys of structured log records, so that a field has one name everywhere.
// It has no state and imports nothing of ours.
package logfields

const (
	Sandbox   = "sandbox"   // id
	Container = "container" // id
	Exec      = "exec"      // id of a further process in a container
	Pod       = "pod"       // namespace/name
	Handler   = "handler"   // runtime handler
	Image     = "image"     // reference
	Digest    = "digest"
	NetNS     = "netns" // path
	Path      = "path"
	PID       = "pid"
	Signal    = "signal"
	ExitCode  = "exit_code"
	Reason    = "reason"
	Duration  = "duration"
	Phase     = "phase" // of a start
	Method    = "method"
	Bytes     = "bytes"
	Code      = "code" // gRPC
	Stack     = "stack"
	Error     = "error"
	Failpoint = "failpoint"
)
