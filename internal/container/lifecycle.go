package container

import "github.com/pistis-run/pistis/internal/lifecycle"

type operation string

const (
	opCreated operation = "create"
	opStart   operation = "start"
	opStarted operation = "become running"
	opExit    operation = "exit"
	opRemove  operation = "remove"
)

// transitions is all that can happen to a container. A running one is killed before it is removed.
func transitions() lifecycle.Table[State, operation] {
	return lifecycle.Table[State, operation]{
		Creating: {opCreated: Created, opRemove: Removing},
		Created:  {opStart: Starting, opExit: Exited, opRemove: Removing},
		Starting: {opStarted: Running, opExit: Exited},
		Running:  {opExit: Exited},
		Unknown:  {opExit: Exited},
		Exited:   {opRemove: Removing},
		Removing: {opRemove: Removing},
	}
}
