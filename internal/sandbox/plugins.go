package sandbox

import "context"

// Moment in the life of a sandbox of which plugins are told.
type Moment string

const (
	Started Moment = "started" // a plugin can refuse the pod by an error
	Stopped Moment = "stopped"
	Removed Moment = "removed"
)

// plugins take part in the life of sandboxes.
type plugins interface {
	TellPod(ctx context.Context, moment Moment, pod Status) error
	// Hold keeps new ones waiting while something is being made.
	Hold() (release func())
}

// noPlugins is for who has none.
type noPlugins struct{}

func (noPlugins) TellPod(context.Context, Moment, Status) error { return nil }
func (noPlugins) Hold() (release func())                        { return func() {} }
