package sandbox

import "context"

// Moment in the life of a sandbox of which plugins are told.
type Moment string

const (
	Started Moment = "started" // a plugin can refuse the pod by an error
	Updated Moment = "updated"
	Stopped Moment = "stopped"
	Removed Moment = "removed"
)

// plugins take part in the life of sandboxes.
type plugins interface {
	TellPod(ctx context.Context, moment Moment, pod Status) error
	// UpdatePod asks whether a pod may get new resources; nil leaves them as they are.
	UpdatePod(ctx context.Context, pod Status, overhead, resources *Resources) error
	// Hold keeps new ones waiting while something is being made. It waits for one that is being let in.
	Hold(ctx context.Context) (release func(), err error)
}

// noPlugins is for who has none.
type noPlugins struct{}

func (noPlugins) TellPod(context.Context, Moment, Status) error { return nil }
func (noPlugins) UpdatePod(context.Context, Status, *Resources, *Resources) error {
	return nil
}
func (noPlugins) Hold(context.Context) (release func(), err error) { return func() {}, nil }
