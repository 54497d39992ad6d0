package oci

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Input is everything that a container's spec depends on.
type Input struct {
	ID, Name  string
	ImageName string
	Image     ocispec.ImageConfig
	Sandbox   Sandbox

	Command, Args []string
	WorkDir       string
	Env           []string // KEY=value, in order; later ones win
	Terminal      bool
	// Mounts come after the standard ones and replace those with the same destination.
	Mounts    []specs.Mount
	Devices   []specs.LinuxDevice
	Resources *specs.LinuxResources
	// OOMScoreAdj as in /proc/self/oom_score_adj.
	OOMScoreAdj int
	Security    Security
}

// Sandbox is what the pod decides for its containers.
type Sandbox struct {
	ID, Name, Namespace, UID string
	Hostname                 string
	CgroupParent             string
	// Namespaces to join, by type; the others are new ones of the container. A type with an empty path is the
	// host's: no namespace is made.
	Namespaces map[specs.LinuxNamespaceType]string
	// Shm is the host directory that is the pod's /dev/shm; empty for one of the container's own.
	Shm string
}

// SELinuxUnconfined instead of a label: the process has none of its own.
const SELinuxUnconfined = "unconfined"

// Security of a container.
type Security struct {
	Privileged                     bool
	NoNewPrivs                     bool
	ReadonlyRoot                   bool
	AddCaps, DropCaps, AmbientCaps []string // with or without CAP_; "ALL"
	// Seccomp makes the profile for the finished spec, whose capabilities it may depend on; nil is unconfined.
	Seccomp         func(*specs.Spec) *specs.LinuxSeccomp
	AppArmorProfile string
	// SELinuxLabel is user:role:type:level, of which each may be empty and is then the pod's; or SELinuxUnconfined.
	SELinuxLabel string
	// MaskedPaths and ReadonlyPaths: nil means the defaults, an empty list none.
	MaskedPaths, ReadonlyPaths []string
}
