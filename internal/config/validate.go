package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// maxSocketPath is what fits into a sockaddr_un, with its final NUL.
const maxSocketPath = 107

var (
	handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
	deviceName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)
)

// Hypervisors that a VM handler can name.
// one without a name takes the first of them that works: the first does most.
func Hypervisors() []string { return []string{DriverQEMU, DriverCloudHypervisor, DriverFirecracker} }

// Validate reports everything that can never work, as one InvalidArgument.
func (c Config) Validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	c.validatePaths(bad)
	c.validateHandlers(bad)
	c.Network.validate(bad)
	c.VM.validate(bad)
	if t := c.Firecracker.CPUTemplate; t != "" && !filepath.IsAbs(t) {
		bad("firecracker.cpu_template: %q is not an absolute path", t)
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad("%s: %q is not one of %q", key, value, allowed)
		}
	}
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	oneOf("cgroup_driver", c.CgroupDriver, "", CgroupFS, CgroupSystemd)
	if n := c.Image.MaxConcurrentDownloads; n < 1 || n > 64 {
		bad("image.max_concurrent_downloads: %d is not between 1 and 64", n)
	}
	if err := listenAddress(c.Stream.Address); err != nil {
		bad("stream.address: %w", err)
	}
	if c.Metrics != "" {
		if err := listenAddress(c.Metrics); err != nil {
			bad("metrics: %w", err)
		}
	}
	if err := c.Tracing.validate(); err != nil {
		bad("tracing.%w", err)
	}
	for key, d := range map[string]Duration{
		"drain_timeout": c.DrainTimeout, "image.pull_timeout": c.Image.PullTimeout,
		"stream.idle_timeout": c.Stream.IdleTimeout, "vm.boot_timeout": c.VM.BootTimeout,
	} {
		if d.Duration <= 0 {
			bad("%s: %q is not a positive duration, write it as \"30s\"", key, d)
		}
	}
	if len(problems) == 0 {
		return nil
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return fmt.Errorf("%w: %w", errors.Join(problems...), errdefs.ErrInvalidArgument)
}

func (c Config) validatePaths(bad func(string, ...any)) {
	for key, path := range map[string]string{"root": c.Root, "state": c.State, "socket": c.Socket} {
		if !filepath.IsAbs(path) || path != filepath.Clean(path) || path == "/" {
			bad("%s: %q is not a clean absolute path", key, path)
		}
	}
	for key, path := range map[string]string{
		"image.hosts_dir": c.Image.HostsDir, "image.signature_policy": c.Image.SignaturePolicy, "network.cni_conf_dir": c.Network.CNIConfDir,
		"vm.kernel": c.VM.Kernel, "vm.initrd": c.VM.Initrd, "vm.modules": c.VM.Modules, "vm.shim": c.VM.Shim, "vm.qemu": c.VM.QEMU, "vm.firecracker": c.VM.Firecracker, "vm.cloud_hypervisor": c.VM.CloudHypervisor, "monitor": c.Monitor,
	} {
		if path != "" && !filepath.IsAbs(path) {
			bad("%s: %q is not an absolute path", key, path)
		}
	}
	for key, path := range map[string]string{"nri.socket": c.NRI.Socket, "nri.plugin_dir": c.NRI.PluginDir, "nri.config_dir": c.NRI.ConfigDir} {
		if c.NRI.Enabled && !filepath.IsAbs(path) {
			bad("%s: %q is not an absolute path", key, path)
		}
	}
	if len(c.Socket) > maxSocketPath {
		bad("socket: %q is longer than the %d bytes that a Unix socket can have", c.Socket, maxSocketPath)
	}
	// A pod's sockets lie in <state>/<kind>/<64-digit id>/<name>.
	if len(c.State) > 24 {
		bad("state: %q is longer than 24 bytes; the sockets of pods below it would not fit into a Unix address", c.State)
	}
	if !filepath.IsLocal(c.CgroupParent) || c.CgroupParent != filepath.Clean(c.CgroupParent) || c.CgroupParent == "." {
		bad("cgroup_parent: %q is not the path of a cgroup, such as \"pistis\", below the root", c.CgroupParent)
	}
	if (c.VM.Kernel == "") != (c.VM.Initrd == "") {
		bad("vm.kernel and vm.initrd: give both or none; their modules must match")
	}
	if c.VM.Modules != "" && c.VM.Kernel == "" {
		bad("vm.modules: it belongs to vm.kernel, which is not given; a guest that was built has its own")
	}
}

func (c Config) validateHandlers(bad func(string, ...any)) {
	known := slices.Sorted(maps.Keys(c.Handlers))
	for _, name := range known {
		h := c.Handlers[name]
		if !handlerName.MatchString(name) {
			bad("handlers.%s: a handler's name has lower-case letters, digits, '-' and '.' only, as a RuntimeClass's", name)
		}
		switch h.Type {
		case HandlerVM:
			if h.Hypervisor != "" && !slices.Contains(Hypervisors(), h.Hypervisor) {
				bad("handlers.%s.hypervisor: %q is not one of %q", name, h.Hypervisor, Hypervisors())
			}
		case HandlerOCI:
			if h.Hypervisor != "" {
				bad("handlers.%s.hypervisor: pods of type %q have none; leave it out, or make the type %q", name, h.Type, HandlerVM)
			}
		case HandlerShim:
			c.validateShim(name, h, bad)
		default:
			bad("handlers.%s.type: %q is none of %q, %q and %q", name, h.Type, HandlerVM, HandlerOCI, HandlerShim)
		}
		if h.Type != HandlerShim && (h.Shim != "" || len(h.Options) > 0) {
			bad("handlers.%s: shim and options are of handlers of type %q; that of %q pods is chosen by path", name, HandlerShim, h.Type)
		}
		if h.Path != "" && !filepath.IsAbs(h.Path) {
			bad("handlers.%s.path: %q is not an absolute path", name, h.Path)
		}
		if h.CNIConfDir != "" && !filepath.IsAbs(h.CNIConfDir) {
			bad("handlers.%s.cni_conf_dir: %q is not an absolute path", name, h.CNIConfDir)
		}
		if h.CNIConfDir != "" && len(c.Network.CNIBinDirs) == 0 {
			bad("network.cni_bin_dirs: empty, but handlers.%s.cni_conf_dir is set; usually it is [\"/opt/cni/bin\"]", name)
		}
	}
	if _, ok := c.Handlers[c.DefaultHandler]; !ok {
		bad("default_handler: there is no [handlers.%s]; the handlers are %q", c.DefaultHandler, known)
	}
	if c.UntrustedHandler == "" {
		return
	}
	if h, ok := c.Handlers[c.UntrustedHandler]; !ok {
		bad("untrusted_handler: there is no [handlers.%s]; the handlers are %q", c.UntrustedHandler, known)
	} else if h.Type != HandlerVM {
		bad("untrusted_handler: %q is of type %q; untrusted pods need one of type %q", c.UntrustedHandler, h.Type, HandlerVM)
	}
}

func (n Network) validate(bad func(string, ...any)) {
	if n.CNIConfDir != "" {
		if len(n.CNIBinDirs) == 0 {
			bad("network.cni_bin_dirs: empty, but network.cni_conf_dir is set; usually it is [\"/opt/cni/bin\"]")
		}
		return
	}
	if !deviceName.MatchString(n.Bridge.Name) {
		bad("network.bridge.name: %q is not a device name of at most 15 letters, digits, '-', '_' and '.'", n.Bridge.Name)
	}
	prefix := func(key, s string, v4 bool, maxBits int) {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			bad("%s: %q is not a network such as 10.67.0.0/16 or fd00::/64", key, s)
		case p.Addr().Is4() != v4:
			bad("%s: %q is of the other IP version", key, s)
		case p != p.Masked():
			bad("%s: %q has host bits set, the network is %s", key, s, p.Masked())
		case p.Bits() > maxBits:
			bad("%s: %q is too small, at most /%d leaves room for pods", key, s, maxBits)
		}
	}
	prefix("network.bridge.ipv4", n.Bridge.IPv4, true, 29)
	if n.Bridge.IPv6 != "" {
		prefix("network.bridge.ipv6", n.Bridge.IPv6, false, 120)
	}
}

func (v VM) validate(bad func(string, ...any)) {
	if !slices.Contains([]string{"auto", "kvm", "tcg"}, v.Acceleration) {
		bad("vm.acceleration: %q is not one of [\"auto\" \"kvm\" \"tcg\"]", v.Acceleration)
	}
	if v.VCPUs < 1 || v.VCPUs > MostVCPUs {
		bad("vm.vcpus: %d is not between 1 and %d", v.VCPUs, MostVCPUs)
	}
	if v.MemoryMiB < 64 || v.MemoryMiB > 16<<20 {
		bad("vm.memory_mib: %d is not between 64 and 16777216 MiB", v.MemoryMiB)
	}
	if v.MaxVCPUs != 0 && (v.MaxVCPUs < v.VCPUs || v.MaxVCPUs > MostVCPUs) {
		bad("vm.max_vcpus: %d is not between vm.vcpus, %d, and %d; 0 is what the host has", v.MaxVCPUs, v.VCPUs, MostVCPUs)
	}
	if v.MaxMemoryMiB != 0 && (v.MaxMemoryMiB < v.MemoryMiB || v.MaxMemoryMiB > 16<<20) {
		bad("vm.max_memory_mib: %d is not between vm.memory_mib, %d, and 16777216 MiB; 0 is what the host has", v.MaxMemoryMiB, v.MemoryMiB)
	}
	if v.ScratchMiB < 16 || v.ScratchMiB > 16<<20 {
		bad("vm.scratch_mib: %d is not between 16 MiB and 16 TiB", v.ScratchMiB)
	}
	if _, _, err := v.UIDRange(); err != nil {
		bad("vm.uids: %w", err)
	}
}

// UIDRange is the first and the last id of UIDs; both are 0 where it is empty.
func (v VM) UIDRange() (first, last uint32, err error) {
	if v.UIDs == "" {
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(v.UIDs, "-")
	lo, errLo := strconv.ParseUint(a, 10, 31)
	hi, errHi := strconv.ParseUint(b, 10, 31)
	if !ok || errLo != nil || errHi != nil || lo < 1 || hi < lo {
		return 0, 0, fmt.Errorf("%q is not a range of user ids such as 2000000-2065535", v.UIDs)
	}
	return uint32(lo), uint32(hi), nil
}

func listenAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return fmt.Errorf("%q: the host must be an IP address or localhost", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: the port is not a number from 0 to 65535", address)
	}
	return nil
}

func (t Tracing) validate() error {
	if t.Ratio < 0 || t.Ratio > 1 || t.Ratio != t.Ratio {
		return fmt.Errorf("ratio: %v is not between 0 and 1", t.Ratio)
	}
	if t.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(t.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("endpoint: %q is not a URL such as http://127.0.0.1:4317", t.Endpoint)
	}
	return nil
}
