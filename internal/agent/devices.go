package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/modules"
	"github.com/pistis-run/pistis/internal/logfields"
)

// addBlockDevices gives a container disks as devices. Those that it got are the container's, also with an error.
func (a *Agent) addBlockDevices(ctx context.Context, c *container, spec *specs.Spec, devices []*agentv1.BlockDevice) error {
	for _, d := range devices {
		if !filepath.IsAbs(d.Path) || strings.Trim(d.Access, "rwm") != "" {
			return invalid("block device %.200q with access %.10q: an absolute path and some of rwm are needed", d.Path, d.Access)
		}
		path, err := a.Roots.AcquireDevice(ctx, d.Disk)
		if err != nil {
			return fmt.Errorf("block device %s: %w", d.Path, err)
		}
		c.devices = append(c.devices, d.Disk)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("block device %s: %w", d.Path, err)
		}
		addBlockDevice(spec.Linux, d, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)))
	}
	return nil
}

func addBlockDevice(linux *specs.Linux, d *agentv1.BlockDevice, major, minor int64) {
	mode := fs.FileMode(d.Mode & 0o777)
	path := filepath.Clean(d.Path)
	linux.Devices = slices.DeleteFunc(linux.Devices, func(have specs.LinuxDevice) bool { return have.Path == path })
	linux.Devices = append(linux.Devices, specs.LinuxDevice{
		Path: path, Type: "b", Major: major, Minor: minor, FileMode: &mode, UID: &d.Uid, GID: &d.Gid,
	})
	if linux.Resources == nil {
		linux.Resources = &specs.LinuxResources{}
	}
	if allDevices(linux.Resources) {
		return // its last word must stay the last
	}
	linux.Resources.Devices = append(linux.Resources.Devices, specs.LinuxDeviceCgroup{
		Allow: true, Type: "b", Major: &major, Minor: &minor, Access: d.Access,
	})
}

// releaseDevices returns the disks that no container has any more.
func (a *Agent) releaseDevices(c *container) (free []*agentv1.DiskAddress, err error) {
	var errs []error
	for _, d := range c.devices {
		last, err := a.Roots.ReleaseDevice(d)
		errs = append(errs, err)
		if last && err == nil {
			free = append(free, d)
		}
	}
	c.devices = nil
	return free, errors.Join(errs...)
}

// prepareModules loads what a container with rights over the network uses without the kernel knowing that it is needed:
// the tools for iptables look for their tables, and load a module from the container's own files when there are none.
func (a *Agent) prepareModules(ctx context.Context, spec *specs.Spec) {
	a.mu.Lock()
	offered := a.sandbox.modules
	a.mu.Unlock()
	if caps := spec.Process.Capabilities; !offered || caps == nil || !slices.Contains(caps.Bounding, "CAP_NET_ADMIN") {
		return
	}
	for _, name := range []string{"ip_tables", "ip6_tables"} {
		if err := modules.Load(ctx, name); err != nil {
			a.Log.Warn("kernel module not loaded", logfields.Module, name, logfields.Error, err)
		}
	}
}
