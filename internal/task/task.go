package task

import (
	"archive/tar"
	"context"
	"encoding/json"
	"io"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ID names a process: a container's own (Exec empty) or one that was added to it.
type ID struct {
	Container string
	Exec      string
}

// Exit is how a process ended.
type Exit struct {
	// Code is the exit status, 128+n for a signal n, 255 where it is not known.
	Code uint32
	At   time.Time
	// OOMKilled: the kernel's OOM killer ended a process of the container.
	OOMKilled bool
	// Reason says what happened where the code does not, as "the virtual machine ended: …".
	Reason string
}

// User is a process's identity after names were resolved inside the root file system.
type User struct {
	UID, GID       uint32
	AdditionalGIDs []uint32
}

// UserRequest is how an image or a user of CRI names an identity.
type UserRequest struct {
	// User is as an image's USER: name or uid, optionally with :group or :gid.
	User string
	// GID, where set, wins over any other primary group.
	GID *uint32
	// SupplementalGroups are added.
	SupplementalGroups []uint32
	// Strict: the image's group file adds nothing.
	Strict bool
}

// PIDNamespace says which processes a container sees beside its own. The zero value: those of the pod where the pod
// shares a namespace, or the host's where it has that, otherwise none.
type PIDNamespace struct {
	// Own: none, also in a pod that shares a namespace.
	Own bool
	// Container: those of another container of the pod, which has to run.
	Container string
}

// CreateRequest describes a container completely.
type CreateRequest struct {
	ID string
	// Bundle is the container's directory on the host, made by the caller; the spec is in its config.json.
	Bundle string
	Spec   *specs.Spec
	// Layers are the image's layers, the lowest first, as paths of the host: read-only ext4 images for a sandbox that is
	// a VM, directories for one on the host's kernel.
	Layers []string
	// Relabel are paths of the host that are to have the container's SELinux label, where it has one.
	Relabel []string
	User    UserRequest
	PID     PIDNamespace
	// LogPath is the CRI log file; empty writes none.
	LogPath   string
	Stdin     bool
	StdinOnce bool
	Terminal  bool
}

// ExecRequest describes a further process in a container. Its stdio is attached before Start.
type ExecRequest struct {
	ID      ID
	Process json.RawMessage // an OCI runtime-spec process; without a user it runs as the container's
	Stdin   bool
	Stdout  bool
	Stderr  bool
	// Terminal is in Process too; it is here so that stdio can be set up without parsing it.
	Terminal bool
}

// Service is what the processes of one sandbox look like to the daemon.
type Service interface {
	// Create makes a container without starting it; on error nothing is left of it.
	Create(ctx context.Context, req CreateRequest) (User, error)
	Exec(ctx context.Context, req ExecRequest) error
	// Start returns the pid, on the host where there is one, else in the guest.
	Start(ctx context.Context, id ID) (pid uint32, err error)
	// Signal sends to one process, or to all of the container.
	Signal(ctx context.Context, id ID, signal uint32, all bool) error
	// Wait blocks until the process has ended and its output was drained into the log.
	Wait(ctx context.Context, id ID) (Exit, error)
	// Delete forgets an ended or never started process. NotFound when there is none.
	Delete(ctx context.Context, id ID) error
}

// Attacher joins the stdio of a process (for an exec: before Start).
type Attacher interface {
	Attach(ctx context.Context, id ID, stdio Stdio) error
}

// Stdio are the client's ends; nil means not wanted. Attach returns when the output ended or ctx did.
type Stdio struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Resizer sets the size of a process's terminal.
type Resizer interface {
	Resize(ctx context.Context, id ID, width, height uint32) error
}

// LogReopener opens a container's log file anew after rotation.
type LogReopener interface {
	ReopenLog(ctx context.Context, container string) error
}

// Updater changes the resource limits of a running container.
type Updater interface {
	Update(ctx context.Context, container string, resources *specs.LinuxResources) error
}

// Checkpointer tells what a running container is at this moment.
type Checkpointer interface {
	// Checkpoint adds to an archive what is needed to look into the container, in the layout that is known from other
	// engines. The container goes on.
	Checkpoint(ctx context.Context, container string, archive *tar.Writer) error
}

// Statter reads statistics of a sandbox and all its containers; with ids only of those containers, and what is the
// sandbox's own may be missing. An id that is not known is left out.
type Statter interface {
	Stats(ctx context.Context, containers ...string) (Stats, error)
}

// Meter reads what the VMM of a sandbox counts of its own work. NotImplemented for one that counts nothing; of one that does not
// answer nothing is known until it does.
type Meter interface {
	Counters(ctx context.Context) ([]Counter, error)
}

// Dialer connects to an address in the sandbox's network, from inside.
type Dialer interface {
	Dial(ctx context.Context, network, address string) (io.ReadWriteCloser, error)
}
