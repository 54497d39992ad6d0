package server

import (
	"sync"

	"github.com/pistis-run/pistis/internal/lifecycle"
)

type (
	state     string
	operation string
)

// States of a process. An exec is starting when it becomes known.
const (
	created  state = "created"
	starting state = "starting"
	running  state = "running"
	stopped  state = "stopped"
	deleting state = "deleting"
)

const (
	opStart      operation = "start"
	opStarted    operation = "finish start"
	opAttach     operation = "attach"
	opUpdate     operation = "update"
	opExec       operation = "exec"
	opCheckpoint operation = "checkpoint"
	opExit       operation = "exit"
	opDelete     operation = "delete"
	opRestore    operation = "restore after a failed deletion"
)

// table says what a state allows. What was only created ends when it is killed. It is made once: garbage is what makes a
// monitor grow.
var table = sync.OnceValue(func() lifecycle.Table[state, operation] {
	return lifecycle.Table[state, operation]{
		created:  {opStart: starting, opAttach: created, opUpdate: created, opExit: stopped, opDelete: deleting},
		starting: {opStarted: running, opAttach: starting, opExit: stopped},
		running:  {opAttach: running, opUpdate: running, opExec: running, opCheckpoint: running, opExit: stopped},
		stopped:  {opDelete: deleting},
		deleting: {opRestore: stopped},
	}
})
