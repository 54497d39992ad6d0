package monitor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/task"
)

// Version is that of the protocol. A monitor answers its own version only: it may be older than the daemon, which then
// says so instead of misunderstanding it.
const Version = 1

// Verb names a call.
type Verb string

// The calls of version 1, with their arguments and results.
const (
	VerbHello      Verb = "hello"  // does nothing but answer
	VerbCreate     Verb = "create" // CreateRequest
	VerbStart      Verb = "start"  // result StartResult
	VerbPID        Verb = "pid"    // result StartResult, of a container that runs
	VerbExec       Verb = "exec"   // ExecArgs and descriptors, result StartResult and a terminal; a second reply has the task.Exit
	VerbSignal     Verb = "signal" // SignalArgs; the one call that is about containers and execs
	VerbWait       Verb = "wait"   // result task.Exit
	VerbDelete     Verb = "delete"
	VerbAttach     Verb = "attach"     // AttachArgs; frames of internal/stdio follow the reply
	VerbResize     Verb = "resize"     // ResizeArgs
	VerbReopen     Verb = "reopen"     // the log
	VerbUpdate     Verb = "update"     // linux.resources of the runtime specification
	VerbCheckpoint Verb = "checkpoint" // CheckpointArgs, of a container that runs and goes on
	VerbProgram    Verb = "program"    // ProgramArgs, result ProgramResult
	VerbExited     Verb = "exited"     // task.Exit of an external container; the result is the one that counts
	VerbShutdown   Verb = "shutdown"   // ShutdownArgs
)

// Request is a call. ID names the process that it is about.
type Request struct {
	Version int             `json:"version"`
	Verb    Verb            `json:"verb"`
	ID      task.ID         `json:"id,omitzero"`
	Args    json.RawMessage `json:"args,omitempty"`
	// Steps asks for the steps of the call in its reply.
	Steps bool `json:"steps,omitempty"`
}

// Reply answers a Request.
type Reply struct {
	Error  *Error          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	// Steps is an encoded report of internal/steps; a monitor that knows none sends none.
	Steps json.RawMessage `json:"steps,omitempty"`
}

// CreateRequest describes a container. Its spec is the config.json of its bundle, which the runtime reads when it starts:
// what the monitor has to know of that is said here.
type CreateRequest struct {
	ID string `json:"id"`
	// Bundle is the container's directory, absolute.
	Bundle string `json:"bundle"`
	// CgroupsPath is the spec's; empty where it has none.
	CgroupsPath string `json:"cgroups_path,omitempty"`
	// LogPath is the CRI log file; empty writes none.
	LogPath string `json:"log_path,omitempty"`
	// Terminal is as in the spec.
	Terminal  bool `json:"terminal,omitempty"`
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdin_once,omitempty"`
	// External: somebody else runs the container. The monitor carries its stdio, through FIFOs in StdioDir, from the call of
	// start on, when their other ends are open; it keeps the exit that it is told.
	External bool `json:"external,omitempty"`
}

// ProgramArgs are a program that the monitor runs to its end, in its own cgroup: what that leaves behind is in the
// pod's, and a child of the monitor, from its first moment on.
type ProgramArgs struct {
	Args  []string `json:"args"`
	Dir   string   `json:"dir"`
	Env   []string `json:"env,omitempty"`
	Input []byte   `json:"input,omitempty"`
}

// ProgramResult is how it ended and the beginning of what it has written.
type ProgramResult struct {
	Code   uint32 `json:"code"`
	Output []byte `json:"output,omitempty"`
	Errors []byte `json:"errors,omitempty"`
}

// ExecArgs describe the stdio of a further process. The descriptors that they say are there follow in this order. The
// process itself is described by a file of the client's, ProcessFile, which is there until the call was answered: it can
// be long, and only the runtime reads it.
type ExecArgs struct {
	Terminal bool `json:"terminal,omitempty"`
	Stdin    bool `json:"stdin,omitempty"`
	Stdout   bool `json:"stdout,omitempty"`
	Stderr   bool `json:"stderr,omitempty"`
}

// StartResult has the process's pid on the host.
type StartResult struct {
	PID uint32 `json:"pid"`
}

// SignalArgs say what is sent, and whether to all processes of the container.
type SignalArgs struct {
	Signal uint32 `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// AttachArgs say which streams are wanted.
type AttachArgs struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// ResizeArgs have the size of a terminal in characters.
type ResizeArgs struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// CheckpointArgs name directories that are there: for the images of criu, and for its log.
type CheckpointArgs struct {
	Images string `json:"images"`
	Work   string `json:"work"`
}

// ShutdownArgs say whether containers that are there are killed and deleted first.
type ShutdownArgs struct {
	Force bool `json:"force,omitempty"`
}

// Settings are what a monitor is started with. They lie in its bundle, for Cleanup and for people to read.
type Settings struct {
	// Runtime is the OCI runtime's path, Args its arguments before every command. Without one all containers are external.
	Runtime string   `json:"runtime,omitempty"`
	Args    []string `json:"args,omitempty"`
	Debug   bool     `json:"debug,omitempty"`
}

// Names in a monitor's bundle.
const (
	settingsFile = "monitor.json"
	// containers has a directory for each container that was started and is not deleted, named by its id.
	containers = "containers"
)

// SettingsFile is where a bundle has its Settings.
func SettingsFile(d bundle.Dir) string { return string(d) + "/" + settingsFile }

// ContainerDirs is the directory of the containers' directories.
func ContainerDirs(d bundle.Dir) string { return string(d) + "/" + containers }

// StdioDir is where an external container, or an exec in one, has its FIFOs.
func StdioDir(d bundle.Dir, id task.ID) string {
	if id.Exec == "" {
		return ContainerDirs(d) + "/" + id.Container + "/stdio"
	}
	return ContainerDirs(d) + "/" + id.Container + "/" + execPrefix + id.Exec
}

// execPrefix begins the names of what an external container's directory has of execs.
const execPrefix = "exec-"

// StdioDirsOfExecs are the execs in an external container that have FIFOs.
func StdioDirsOfExecs(d bundle.Dir, container string) ([]task.ID, error) {
	entries, err := os.ReadDir(ContainerDirs(d) + "/" + container)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var found []task.ID
	for _, entry := range entries {
		if id, ok := strings.CutPrefix(entry.Name(), execPrefix); ok {
			found = append(found, task.ID{Container: container, Exec: id})
		}
	}
	return found, nil
}

// ProcessFile is where a runtime-spec process is for an exec.
func ProcessFile(d bundle.Dir, id task.ID) string {
	return ContainerDirs(d) + "/" + id.Container + "/process-" + id.Exec
}

// ValidID tells whether an id is one: what runtimes take too, and a file may be named by.
func ValidID(id string) bool {
	const maxID = 128
	if id == "" || len(id) > maxID || id[0] == '.' || id[0] == '-' {
		return false
	}
	return !slices.ContainsFunc([]byte(id), func(b byte) bool {
		return (b < '0' || b > '9') && (b < 'A' || b > 'Z') && (b < 'a' || b > 'z') && b != '_' && b != '.' && b != '+' && b != '-'
	})
}
