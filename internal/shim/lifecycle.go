package shim

import "github.com/pistis-run/pistis/internal/lifecycle"

type (
	sandboxState string
	processState string
	operation    string
)

// States of the sandbox.
const (
	sandboxNew      sandboxState = "new"
	sandboxCreated  sandboxState = "created"
	sandboxStarting sandboxState = "starting"
	sandboxReady    sandboxState = "ready"
	sandboxStopping sandboxState = "stopping"
	sandboxStopped  sandboxState = "stopped"
)

// States of a process.
const (
	processCreating processState = "creating"
	processCreated  processState = "created"
	processStarting processState = "starting"
	processRunning  processState = "running"
	processPaused   processState = "paused"
	processStopped  processState = "stopped"
	processDeleting processState = "deleting"
	// processAbandoned is one that was deleted while it was being created: the creation fails, and undoes itself.
	processAbandoned processState = "abandoned"
)

const (
	opCreate  operation = "create"
	opCreated operation = "finish creation"
	opAbandon operation = "abandon creation"
	opStart   operation = "start"
	opStarted operation = "finish start"
	opSignal  operation = "signal"
	opPause   operation = "pause"
	opResume  operation = "resume"
	opExit    operation = "exit"
	opStop    operation = "stop"
	opUse     operation = "use"
	opDelete  operation = "delete"
	opRestore operation = "restore after a failed deletion"
)

// sandboxTable says what a sandbox's state allows. opExit is the end of the VM.
func sandboxTable() lifecycle.Table[sandboxState, operation] {
	return lifecycle.Table[sandboxState, operation]{
		sandboxNew:      {opCreate: sandboxCreated, opStop: sandboxStopping},
		sandboxCreated:  {opStart: sandboxStarting, opStop: sandboxStopping},
		sandboxStarting: {opStarted: sandboxReady, opExit: sandboxStopped},
		sandboxReady:    {opUse: sandboxReady, opStop: sandboxStopping, opExit: sandboxStopped},
		sandboxStopping: {opExit: sandboxStopped},
		sandboxStopped:  {},
	}
}

// processTable says what a process's state allows. A process that has not started can end too: with its VM.
func processTable() lifecycle.Table[processState, operation] {
	return lifecycle.Table[processState, operation]{
		processCreating:  {opCreated: processCreated, opAbandon: processAbandoned},
		processCreated:   {opStart: processStarting, opSignal: processCreated, opUse: processCreated, opExit: processStopped, opDelete: processDeleting},
		processStarting:  {opStarted: processRunning, opSignal: processStarting, opUse: processStarting, opExit: processStopped},
		processRunning:   {opSignal: processRunning, opUse: processRunning, opPause: processPaused, opExit: processStopped},
		processPaused:    {opSignal: processPaused, opUse: processPaused, opResume: processRunning, opExit: processStopped},
		processStopped:   {opDelete: processDeleting},
		processDeleting:  {opRestore: processStopped, opExit: processDeleting},
		processAbandoned: {opAbandon: processAbandoned},
	}
}
