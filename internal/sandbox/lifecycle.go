package sandbox

import "github.com/pistis-run/pistis/internal/lifecycle"

type operation string

const (
	opReady  operation = "ready"
	opFail   operation = "fail" // a start that could not be undone at once
	opExit   operation = "exit" // the instance ended by itself
	opStop   operation = "stop"
	opRemove operation = "remove"
)

// transitions is all that can happen to a sandbox. A Ready one is stopped before it is removed.
func transitions() lifecycle.Table[State, operation] {
	return lifecycle.Table[State, operation]{
		Creating: {opReady: Ready, opFail: NotReady, opRemove: Removing},
		Ready:    {opExit: NotReady, opStop: NotReady},
		NotReady: {opStop: NotReady, opRemove: Removing},
		Removing: {opStop: Removing, opRemove: Removing},
	}
}
