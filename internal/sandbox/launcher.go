package sandbox

import (
	"context"
	"encoding/json"

	"github.com/pistis-run/pistis/internal/network"
	"github.com/pistis-run/pistis/internal/task"
)

// Launcher is what a runtime handler looks like: it makes instances of sandboxes. Its methods may be called from
// any goroutine, those for one sandbox one after another.
type Launcher interface {
	// VM: see Status.VM.
	VM() bool
	// Validate refuses, before anything is acquired, what this handler cannot honour.
	Validate(cfg Config) error
	// Launch starts the instance, whose network may still be being set up: it asks for that, with Connected, before it
	// returns. On error nothing is left that Cleanup with the state last saved does not remove.
	Launch(ctx context.Context, req LaunchRequest) (Instance, error)
	// Reconnect attaches to an instance that an earlier process launched. An error means that it cannot be used any
	// more; Cleanup follows.
	Reconnect(ctx context.Context, req LaunchRequest) (Instance, error)
	// Cleanup ends what is left of an instance and removes everything that was made for it. It is idempotent and also
	// takes a request whose Launch was interrupted at any point, or never began.
	Cleanup(ctx context.Context, req LaunchRequest) error
	// Sweep removes what exists of sandboxes that keep does not hold.
	Sweep(ctx context.Context, keep map[string]bool) error
}

// kinds of runtime handlers: a handler may have become another one under its sandboxes.
type kinds interface {
	// Of names what a handler is now.
	Of(handler string) string
	// Check refuses a sandbox that the handler made when it was of that kind, and that it cannot end as it is now.
	Check(id, handler, kind string) error
}

// noKinds is for handlers that never change.
type noKinds struct{}

func (noKinds) Of(string) string                   { return "" }
func (noKinds) Check(string, string, string) error { return nil }

// LaunchRequest describes a sandbox to its launcher.
type LaunchRequest struct {
	ID     string
	Config Config
	// NetNS is the path of the network namespace, which is there; empty on the host's network.
	NetNS string
	// State is what the launcher saved last; nil at first.
	State json.RawMessage
	// Connected waits until the network is set up; it may be called again. Only in Launch.
	Connected func(ctx context.Context) (Connection, error)
	// Save keeps the launcher's state in the sandbox's record. Only in Launch.
	Save func(state json.RawMessage) error
}

// Connection is what its network gives to a sandbox; nothing on the host's network.
type Connection struct {
	// IPs of the pod, the primary first, and what its network says about DNS.
	IPs []string
	DNS DNS
}

// Instance is one running sandbox.
type Instance interface {
	// Tasks are the processes in it; optional interfaces of package task by assertion.
	Tasks() task.Service
	// Wait blocks until the instance has ended, by itself or not, and says why. The error is of waiting alone.
	Wait(ctx context.Context) (reason string, err error)
	// Stop ends it, in order if it answers and by force otherwise. Idempotent; nil when it has ended.
	Stop(ctx context.Context) error
	// Info is for people: pids, versions, phases of the start. It does not block.
	Info() map[string]string
	// Close lets go of the instance and leaves it running.
	Close() error
}

// NetNS are the functions that make and remove network namespaces; see package network/netns.
type NetNS struct {
	Create func(dir, id string) (path string, err error)
	// CreateOwned makes it in a new user namespace.
	CreateOwned func(dir, id string, user UserNamespace) (path string, err error)
	Remove      func(path string) error // idempotent
	List        func(dir string) (ids []string, err error)
	// UserNS is where CreateOwned keeps the user namespace of a network namespace.
	UserNS func(netns string) (path string)
}

// networks connects pods; see package network.
type networks interface {
	Setup(ctx context.Context, pod network.Pod) (network.Result, error)
	Teardown(ctx context.Context, pod network.Pod) error // idempotent
	Reconcile(ctx context.Context, keep map[string]bool) error
}

// containers are those of the sandboxes; their manager has them.
type containers interface {
	StopAll(ctx context.Context, sandboxID string) error
	RemoveAll(ctx context.Context, sandboxID string) error
}
