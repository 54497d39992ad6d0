package sandbox

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Config is what was asked for; it never changes after Run, but for Overhead and Resources.
type Config struct {
	Identity
	Handler     string // after selection: never empty
	Hostname    string
	LogDir      string
	DNS         *DNS // nil: the host's resolv.conf
	Ports       []Port
	Labels      map[string]string
	Annotations map[string]string

	CgroupParent string
	Sysctls      map[string]string
	Namespaces
	Privileged bool
	// SELinuxLabel is user:role:type:level, of which each may be empty, for pods on the host's kernel.
	SELinuxLabel string
	// Overhead and Resources size a VM: what the pod's containers may use together, and what the runtime may on top.
	Overhead, Resources Resources
}

// Identity of a pod, as its owner knows it.
type Identity struct {
	Name, Namespace, UID string
	Attempt              uint32
}

// Namespaces of a pod.
type Namespaces struct {
	HostNetwork, HostPID, HostIPC bool
	// SharedPID: the containers of the pod share one PID namespace.
	SharedPID bool
	// User: the pod has a user namespace of its own with these ids; nil is the host's.
	User *UserNamespace
}

// UserNamespace maps ids of a pod to those of the host. Each list has one range, which begins at 0 in the pod.
type UserNamespace struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// Resources of a pod, for sizing.
type Resources struct {
	CPUPeriod, CPUQuota, CPUShares int64
	// MemoryLimit in bytes; 0 is unlimited.
	MemoryLimit int64
}

// DNS of the pod, as in resolv.conf.
type DNS struct {
	Servers, Searches, Options []string
}

// Port is a host port that leads to the pod.
type Port struct {
	Protocol      string // tcp, udp, sctp
	ContainerPort uint16
	HostPort      uint16
	HostIP        string
}

// State of a sandbox; transitions are in lifecycle.go.
type State string

const (
	Creating State = "creating"
	Ready    State = "ready"
	NotReady State = "not-ready"
	Removing State = "removing"
)

// Status is a snapshot of a sandbox.
type Status struct {
	ID      string
	Config  Config
	State   State
	Created time.Time
	// Reason says why a sandbox became NotReady by itself.
	Reason string
	// IPs, the primary first.
	IPs []string
	// NetNS is the path of its network namespace.
	NetNS string
	// UserNS is the path of its user namespace; empty where it is the host's.
	UserNS string
	// VM: the containers run on a kernel of their own; paths, devices and namespaces of the host mean nothing there.
	VM bool
	// Info is for verbose status: shim pid, vmm pid, hypervisor, acceleration, guest kernel, phases.
	Info map[string]string
}
