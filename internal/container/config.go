package container

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

// Config is what was asked for.
type Config struct {
	SandboxID string
	Name      string
	Attempt   uint32
	// Image is the reference as the user gave it, ImageRef what it resolved to.
	Image, ImageRef string
	Process
	Mounts      []Mount
	Devices     []Device
	Labels      map[string]string
	Annotations map[string]string
	// LogPath is relative to the sandbox's log directory; empty means no log.
	LogPath string

	Resources *specs.LinuxResources
	OOMScore  int
	Security  Security
}

// Process is what runs in a container.
type Process struct {
	// Command and Args replace the image's.
	Command, Args         []string
	WorkDir               string
	Env                   []string // KEY=value, in order
	Stdin, StdinOnce, TTY bool
	StopSignal            string // SIGTERM, …; empty: the image's, then SIGTERM
}

// Security is the security context.
type Security struct {
	Privileged   bool
	NoNewPrivs   bool
	ReadonlyRoot bool
	Capabilities
	User          task.UserRequest
	Seccomp       Profile
	AppArmor      Profile
	SELinuxLabel  string
	MaskedPaths   []string
	ReadonlyPaths []string
	Namespaces
}

// Capabilities to change, with or without CAP_; "ALL" is all of them.
type Capabilities struct {
	AddCaps, DropCaps, AmbientCaps []string
}

// Namespaces of a container.
type Namespaces struct {
	// SharedPID: as the sandbox; TargetPID joins that container's PID namespace.
	SharedPID                     bool
	TargetPID                     string
	HostNetwork, HostPID, HostIPC bool
}

// ProfileKind of a security profile.
type ProfileKind string

const (
	ProfileDefault    ProfileKind = "runtime/default"
	ProfileUnconfined ProfileKind = "unconfined"
	ProfileLocalhost  ProfileKind = "localhost"
)

// Profile of seccomp or AppArmor; Path is for localhost: an absolute file (seccomp) or a loaded name (AppArmor).
type Profile struct {
	Kind ProfileKind
	Path string
}

// Mount into the container.
type Mount struct {
	ContainerPath, HostPath string
	Readonly                bool
	RecursiveReadonly       bool
	SELinuxRelabel          bool
	Propagation             string   // private, rslave, rshared
	Options                 []string // noexec, nodev, nosuid
	// Image, where set, is mounted instead of HostPath; SubPath is inside it.
	Image, SubPath           string
	UIDMappings, GIDMappings []specs.LinuxIDMapping
}

// Device of the host, or a CDI name.
type Device struct {
	ContainerPath, HostPath, Permissions string
	CDI                                  string
}

// State of a container; transitions are in lifecycle.go.
type State string

const (
	Creating State = "creating"
	Created  State = "created"
	Starting State = "starting"
	Running  State = "running"
	Exited   State = "exited"
	Removing State = "removing"
	Unknown  State = "unknown"
)

// Status is a snapshot of a container.
type Status struct {
	ID                         string
	Config                     Config
	State                      State
	ImageID                    string
	User                       *task.User
	PID                        uint32
	Created, Started, Finished time.Time
	ExitCode                   int32
	// Reason is one of the Reason constants, Message the sentence for people.
	Reason, Message string
	LogPath         string // absolute
	// StopSignal is the one that Stop sends, from the configuration or the image.
	StopSignal unix.Signal
}

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// Why a container is Exited.
const (
	ReasonCompleted  = "Completed"          // exit code 0
	ReasonError      = "Error"              // another exit code
	ReasonOOMKilled  = "OOMKilled"          // the kernel's OOM killer ended it
	ReasonCannotRun  = "ContainerCannotRun" // its command cannot be executed: 126, 127
	ReasonStartError = "StartError"         // it could not be started for another cause: 128
	ReasonUnknown    = "Unknown"            // its runtime has gone: 255
)
