package config

import "time"

// Config is pistisd's configuration file.
type Config struct {
	// Root keeps what survives a reboot, State (run directory) what does not.
	Root  string `toml:"root" json:"root"`
	State string `toml:"state" json:"state"`
	// Socket of the CRI.
	Socket  string  `toml:"socket" json:"socket"`
	Log     Log     `toml:"log" json:"log"`
	Image   Image   `toml:"image" json:"image"`
	Network Network `toml:"network" json:"network"`
	Stream  Stream  `toml:"stream" json:"stream"`
	Runtimes
	VM          VM          `toml:"vm" json:"vm"`
	Firecracker Firecracker `toml:"firecracker" json:"firecracker"`
	Cgroups
	// Monitor is the path of pistis-monitor; empty: beside pistisd, then PATH.
	Monitor string `toml:"monitor" json:"monitor"`
	// Metrics is a listen address; empty: off.
	Metrics string  `toml:"metrics" json:"metrics"`
	Tracing Tracing `toml:"tracing" json:"tracing"`
	// DrainTimeout bounds what SIGTERM waits for calls that run.
	DrainTimeout Duration `toml:"drain_timeout" json:"drain_timeout"`
}

// Runtimes are what pods run with.
type Runtimes struct {
	// DefaultHandler is used without a RuntimeClass, UntrustedHandler for pods that are annotated as untrusted
	// (empty: such pods are refused).
	DefaultHandler   string             `toml:"default_handler" json:"default_handler"`
	UntrustedHandler string             `toml:"untrusted_handler" json:"untrusted_handler"`
	Handlers         map[string]Handler `toml:"handlers" json:"handlers"`
	NRI              NRI                `toml:"nri" json:"nri"`
}

// Cgroups of the pods.
type Cgroups struct {
	// CgroupDriver is cgroupfs or systemd; empty finds out.
	CgroupDriver string `toml:"cgroup_driver" json:"cgroup_driver"`
	// CgroupParent is the cgroup, below each hierarchy's root, of pods that name none; with systemd the slice of that name.
	CgroupParent string `toml:"cgroup_parent" json:"cgroup_parent"`
}

// Tracing is where traces of calls go.
type Tracing struct {
	// Endpoint is the URL of an OpenTelemetry collector that takes OTLP over gRPC; empty: off.
	Endpoint string `toml:"endpoint" json:"endpoint"`
	// Ratio of the calls that are traced, from 0 to 1, where the client has not decided.
	Ratio float64 `toml:"ratio" json:"ratio"`
}

// Log is how the daemon logs, to standard error.
type Log struct {
	Level  string `toml:"level" json:"level"`   // debug, info, warn, error
	Format string `toml:"format" json:"format"` // text, json
}

// Image is how images are pulled and kept.
type Image struct {
	// HostsDir holds hosts.toml files as containerd's config_path.
	HostsDir string `toml:"hosts_dir" json:"hosts_dir"`
	// Mirrors maps a registry host to the URLs that are asked before it.
	Mirrors map[string][]string `toml:"mirrors" json:"mirrors"`
	// Insecure are registries, as host or host:port, that are spoken to over plain HTTP.
	Insecure               []string `toml:"insecure" json:"insecure"`
	MaxConcurrentDownloads int      `toml:"max_concurrent_downloads" json:"max_concurrent_downloads"`
	// PullTimeout is how long a pull may go without progress.
	PullTimeout Duration `toml:"pull_timeout" json:"pull_timeout"`
	Pinned      []string `toml:"pinned" json:"pinned"`
	// SignaturePolicy is the path of a containers-policy.json(5); empty: none.
	SignaturePolicy string `toml:"signature_policy" json:"signature_policy"`
}

// Network of the pods.
type Network struct {
	// CNIConfDir is watched for a CNI configuration; empty means the built-in bridge.
	CNIConfDir string   `toml:"cni_conf_dir" json:"cni_conf_dir"`
	CNIBinDirs []string `toml:"cni_bin_dirs" json:"cni_bin_dirs"`
	Bridge     Bridge   `toml:"bridge" json:"bridge"`
}

// Bridge is the built-in network.
type Bridge struct {
	Name string `toml:"name" json:"name"`
	IPv4 string `toml:"ipv4" json:"ipv4"`
	IPv6 string `toml:"ipv6" json:"ipv6"` // empty: IPv4 only
}

// NRI are plugins that take part in the life of pods and containers.
type NRI struct {
	Enabled   bool   `toml:"enabled" json:"enabled"`
	Socket    string `toml:"socket" json:"socket"`
	PluginDir string `toml:"plugin_dir" json:"plugin_dir"`
	ConfigDir string `toml:"config_dir" json:"config_dir"`
}

// Stream is the server for exec, attach and port-forward.
type Stream struct {
	Address     string   `toml:"address" json:"address"` // host:port, port 0 picks one
	IdleTimeout Duration `toml:"idle_timeout" json:"idle_timeout"`
}

// The values of CgroupDriver.
const (
	CgroupFS      = "cgroupfs"
	CgroupSystemd = "systemd"
)

// The types of handlers.
const (
	HandlerVM   = "vm"
	HandlerOCI  = "oci"
	HandlerShim = "shim"
)

// Handler is one runtime handler.
type Handler struct {
	// Type is HandlerVM (microVM shim), HandlerOCI (an OCI runtime on the host's kernel) or HandlerShim (a containerd shim).
	Type string `toml:"type" json:"type"`
	// Hypervisor of a VM handler: qemu, …; empty picks the best that works.
	Hypervisor string `toml:"hypervisor" json:"hypervisor"`
	// Path of the OCI runtime or of the shim; empty finds it.
	Path string `toml:"path" json:"path"`
	// Shim is the containerd shim of a HandlerShim: its name, or the path of its program.
	Shim string `toml:"shim" json:"shim"`
	// Options are for that shim, as containerd has them.
	Options map[string]any `toml:"options" json:"options"`
	// CNIConfDir is for pods of this handler; empty: [network]'s.
	CNIConfDir string `toml:"cni_conf_dir" json:"cni_conf_dir"`
}

// Firecracker is what that hypervisor does to its VMs, and others cannot. Rates are per second, 0 is no bound.
type Firecracker struct {
	DiskBandwidth uint64 `toml:"disk_bandwidth" json:"disk_bandwidth"` // bytes, of each disk
	DiskOps       uint64 `toml:"disk_ops" json:"disk_ops"`
	NetBandwidth  uint64 `toml:"net_bandwidth" json:"net_bandwidth"` // bytes, of each card in each direction
	NetOps        uint64 `toml:"net_ops" json:"net_ops"`
	// CPUTemplate is the path of a description of the guest's processors; empty: the host's.
	CPUTemplate string `toml:"cpu_template" json:"cpu_template"`
}

// The hypervisors, by the names of their drivers.
const (
	DriverQEMU            = "qemu"
	DriverFirecracker     = "firecracker"
	DriverCloudHypervisor = "cloud-hypervisor"
)

// VM settings for all VM handlers.
type VM struct {
	Shim string `toml:"shim" json:"shim"` // path of containerd-shim-pistis-v2; empty: beside pistisd, then PATH
	QEMU string `toml:"qemu" json:"qemu"` // path; empty: PATH
	// Firecracker and CloudHypervisor are paths; empty: PATH.
	Firecracker     string   `toml:"firecracker" json:"firecracker"`
	CloudHypervisor string   `toml:"cloud_hypervisor" json:"cloud_hypervisor"`
	Kernel          string   `toml:"kernel" json:"kernel"`
	Initrd          string   `toml:"initrd" json:"initrd"`
	Modules         string   `toml:"modules" json:"modules"` // image of modules to load on demand, for kernel; empty: none
	Machine         string   `toml:"machine" json:"machine"`
	KernelParams    []string `toml:"kernel_params" json:"kernel_params"`
	// Acceleration is auto, kvm or tcg.
	Acceleration string `toml:"acceleration" json:"acceleration"`
	VMSize
	Reclaim     bool     `toml:"reclaim" json:"reclaim"`         // give memory that guests have freed back to the host
	ScratchMiB  uint64   `toml:"scratch_mib" json:"scratch_mib"` // size of a pod's writable disk (sparse)
	BootTimeout Duration `toml:"boot_timeout" json:"boot_timeout"`
	// UIDs is the range, as 2000000-2065535, that VMMs run as, one each; empty: as the shim.
	UIDs string `toml:"uids" json:"uids"`
}

// MostVCPUs is as many as QEMU and Cloud Hypervisor both can have.
const MostVCPUs = 254

// VMSize is what a VM has.
type VMSize struct {
	VCPUs     uint32 `toml:"vcpus" json:"vcpus"`           // default of a pod without limits
	MemoryMiB uint64 `toml:"memory_mib" json:"memory_mib"` // default, and the base that limits are added to
	// MaxVCPUs and MaxMemoryMiB are the most, also while it runs; 0 is what the host has.
	MaxVCPUs     uint32 `toml:"max_vcpus" json:"max_vcpus"`
	MaxMemoryMiB uint64 `toml:"max_memory_mib" json:"max_memory_mib"`
}

// Duration is a time.Duration that is written as "1m30s" in files.
type Duration struct{ time.Duration }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	d.Duration = v
	return err
}
