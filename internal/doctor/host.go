package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/guestimage"
	"github.com/pistis-run/pistis/internal/hostpod"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/cloudhypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/drivers"
	"github.com/pistis-run/pistis/internal/hypervisor/firecracker"
	"github.com/pistis-run/pistis/internal/hypervisor/kvmprobe"
)

const (
	gib = 1 << 30
	mib = 1 << 20
	// Less disk than wantDisk is tight for images, less than minDisk too little for any.
	wantDisk, minDisk = 5 * gib, 512 * mib
)

// host is what is looked at; proc, dev and probe are others in tests.
type host struct {
	Options
	proc, dev string
	// probe runs a guest under KVM, or tells from an earlier time, and says why not where it does not work.
	probe func(context.Context) (usable bool, reason string, err error)
}

func (h host) privileges(context.Context) finding {
	if os.Geteuid() != 0 {
		return fail("run pistisd (and this command, for right answers) as root", "running as user %d", os.Geteuid())
	}
	have, err := capability.NewPid2(0)
	if err == nil {
		err = have.Load()
	}
	if err != nil {
		return warn("", "the process's capabilities cannot be read: %v", err)
	}
	var missing, useful []string
	for _, c := range []capability.Cap{
		capability.CAP_SYS_ADMIN, capability.CAP_NET_ADMIN, capability.CAP_CHOWN, capability.CAP_DAC_OVERRIDE,
		capability.CAP_FOWNER, capability.CAP_KILL, capability.CAP_SETUID, capability.CAP_SETGID, capability.CAP_MKNOD,
	} {
		if !have.Get(capability.EFFECTIVE, c) {
			missing = append(missing, c.String())
		}
	}
	for _, c := range []capability.Cap{capability.CAP_SYS_RESOURCE, capability.CAP_SYS_PTRACE} {
		if !have.Get(capability.EFFECTIVE, c) {
			useful = append(useful, c.String())
		}
	}
	switch {
	case len(missing) > 0:
		return fail("give the daemon these capabilities", "root without %s", strings.Join(missing, ", "))
	case len(useful) > 0:
		return warn("nothing must be done: scores of the OOM killer cannot be lowered, for one", "root without %s", strings.Join(useful, ", "))
	}
	return ok("root with all capabilities that are needed")
}

func (h host) configuration(context.Context) finding {
	if err := h.Config.Validate(); err != nil {
		return fail("correct the configuration; `pistisd config default` explains every key", "%v", err)
	}
	return ok("root %s, state %s, default handler %s", h.Config.Root, h.Config.State, h.Config.DefaultHandler)
}

func (h host) shim(context.Context) finding {
	for name, handler := range h.Config.Handlers {
		if handler.Type != config.HandlerVM {
			continue
		}
		path, err := h.Config.VM.FindShim(handler)
		if err != nil {
			return fail("install "+config.ShimName+" beside pistisd", "handler %s: %v", name, err)
		}
		return ok("%s", path)
	}
	return ok("not needed: no handler runs pods as virtual machines")
}

// runtimes are the programs of the handlers on the host's kernel. The default one has to be there.
func (h host) runtimes(context.Context) finding {
	var found []string
	var missing error
	for _, name := range slices.Sorted(maps.Keys(h.Config.Handlers)) {
		handler := h.Config.Handlers[name]
		if handler.Type == config.HandlerVM {
			continue
		}
		find := handler.FindRuntime
		if handler.Type == config.HandlerShim {
			find = handler.FindContainerdShim
		}
		path, err := find(name)
		if err == nil {
			err = hostpod.CheckRuntime(path)
		}
		if err == nil {
			found = append(found, path)
			continue
		}
		if name == h.Config.DefaultHandler {
			return fail("install it, or make another handler the default", "handler %s: %v", name, err)
		}
		missing = errors.Join(missing, fmt.Errorf("handler %s: %w", name, err))
	}
	if missing != nil {
		return warn("nothing must be done where no pod asks for it", "%v", missing)
	}
	return ok("%s", strings.Join(found, ", "))
}

func (h host) monitor(context.Context) finding {
	path, err := h.Config.FindMonitor()
	if err != nil {
		return fail("install "+config.MonitorName+" beside pistisd", "%v", err)
	}
	return ok("%s", path)
}

func (h host) qemu(ctx context.Context) finding {
	path, err := h.Config.VM.FindVMM(config.DriverQEMU)
	if err != nil {
		_, pkg := config.QEMU()
		return fail("Debian: apt install "+pkg, "%v", err)
	}
	version, err := drivers.All()[config.DriverQEMU].Version(ctx, path)
	if err != nil {
		return fail("install a newer QEMU", "%v", err)
	}
	return ok("%s, version %s", path, version)
}

func (h host) firecracker(ctx context.Context) finding {
	return h.needsKVM(ctx, config.DriverFirecracker, firecracker.Driver{})
}

func (h host) cloudHypervisor(ctx context.Context) finding {
	return h.needsKVM(ctx, config.DriverCloudHypervisor, cloudhypervisor.Driver{})
}

// needsKVM is for hypervisors that nobody has to have and that run under KVM alone.
func (h host) needsKVM(ctx context.Context, name string, driver hypervisor.Driver) finding {
	var wanted []string
	for handler, c := range h.Config.Handlers {
		if c.Type == config.HandlerVM && c.Hypervisor == name {
			wanted = append(wanted, handler)
		}
	}
	if len(wanted) == 0 {
		return ok("not needed: no handler names it")
	}
	slices.Sort(wanted)
	unless := "nothing must be done where no pod asks for handler " + strings.Join(wanted, " or ")
	path, err := h.Config.VM.FindVMM(name)
	if err != nil {
		return warn(unless, "%v", err)
	}
	version, err := driver.Version(ctx, path)
	if err != nil {
		return warn(unless, "%v", err)
	}
	if h.Config.VM.Acceleration == "tcg" {
		return warn(unless, "%s, version %s, needs KVM, and vm.acceleration is tcg", path, version)
	}
	usable, reason, err := h.probe(ctx)
	switch {
	case err != nil:
		return warn("see the other findings, then ask again", "%s, version %s; whether guests run under KVM was not found out: %v", path, version, err)
	case !usable:
		return warn(unless, "%s, version %s, needs KVM: %s", path, version, reason)
	}
	return ok("%s, version %s", path, version)
}

// choice is the hypervisor of the handlers that leave it to the daemon: the first that works here.
func (h host) choice(ctx context.Context) finding {
	var handlers []string
	for handler, c := range h.Config.Handlers {
		if c.Type == config.HandlerVM && c.Hypervisor == "" {
			handlers = append(handlers, handler)
		}
	}
	if len(handlers) == 0 {
		return ok("every handler of microVMs names its hypervisor")
	}
	slices.Sort(handlers)
	how, usable := "emulated, as vm.acceleration is tcg", false
	if h.Config.VM.Acceleration != "tcg" {
		var err error
		if usable, _, err = h.probe(ctx); err != nil {
			return warn("see the other findings, then ask again", "whether guests run under KVM was not found out: %v", err)
		}
		how = map[bool]string{true: "under KVM", false: "emulated, as KVM does not run guests here"}[usable]
	}
	var passedOver []string
	for _, name := range config.Hypervisors() {
		_, err := h.Config.VM.FindVMM(name)
		switch {
		case err != nil:
			passedOver = append(passedOver, name+" is not there")
		case !usable && drivers.All()[name].Capabilities().NeedsKVM:
			passedOver = append(passedOver, name+" needs KVM")
		default:
			passedOver = append([]string{fmt.Sprintf("handler %s: %s, %s", strings.Join(handlers, ", "), name, how)}, passedOver...)
			return ok("%s", strings.Join(passedOver, "; "))
		}
	}
	return warn("install QEMU, or see the findings about the others", "no hypervisor works for handler %s: %s", strings.Join(handlers, ", "), strings.Join(passedOver, "; "))
}

func (h host) kvm(ctx context.Context) finding {
	const slow = "without it guests are emulated, which works and is several times slower; "
	if h.Config.VM.Acceleration == "tcg" {
		return ok("not used: vm.acceleration is tcg")
	}
	report := warn
	if h.Config.VM.Acceleration == "kvm" {
		report = fail
	}
	device := filepath.Join(h.dev, "kvm")
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return report(slow+"load kvm_intel or kvm_amd; in a virtual machine, let its host allow nested virtualization", "there is no %s", device)
	case err != nil:
		return report(slow+"see who may open it", "%v", err)
	}
	_ = f.Close()
	usable, reason, err := h.probe(ctx)
	switch {
	case err != nil:
		return warn("see the other findings, then ask again", "%s opens; whether guests run on it was not found out: %v", device, err)
	case !usable && strings.Contains(reason, "Permission denied"):
		return report(slow+"virtual machines run as users of their own: give "+device+" a group (chgrp kvm) and that group access (chmod 660)",
			"%s opens for root, but %s", device, reason)
	case !usable:
		return report(slow+"use a host whose KVM runs an ordinary kernel", "%s opens, but %s", device, reason)
	}
	return ok("%s: %s", device, reason)
}

// probeKVM is the daemon's own probe, with the guest that it would boot and the answer that it may have kept.
func (h host) probeKVM(ctx context.Context) (usable bool, reason string, err error) {
	cfg := kvmprobe.Config{Kernel: h.Config.VM.Kernel, Initrd: h.Config.VM.Initrd, CacheDir: h.Config.Root}
	if cfg.Kernel == "" {
		guest, err := guestimage.Load(filepath.Join(h.Config.Root, "guest"))
		if err != nil {
			return false, "", err
		}
		cfg.Kernel, cfg.Initrd = guest.Kernel, guest.Initrd
	}
	if first, _, err := h.Config.VM.UIDRange(); err == nil && first > 0 {
		cfg.User = &hypervisor.User{UID: first, GID: first}
	}
	for _, name := range config.Hypervisors() {
		if cfg.Binary, err = h.Config.VM.FindVMM(name); err != nil {
			continue
		}
		cfg.Driver = drivers.All()[name]
		if cfg.Driver.Capabilities().ELFKernel {
			return probeUncompressed(ctx, cfg)
		}
		return kvmprobe.Run(ctx, cfg)
	}
	return false, "", err
}

// probeUncompressed has the kernel in a file for a moment, as the daemon's own is its affair.
func probeUncompressed(ctx context.Context, cfg kvmprobe.Config) (usable bool, reason string, err error) {
	f, err := os.CreateTemp("", "pistis-vmlinux-")
	if err != nil {
		return false, "", err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := errors.Join(guestimage.WriteVmlinux(f, cfg.Kernel), f.Chmod(0o644), f.Close()); err != nil {
		return false, "", err
	}
	cfg.Vmlinux = f.Name()
	return kvmprobe.Run(ctx, cfg)
}

func (h host) guest(context.Context) finding {
	const advice = "run `pistis guest build`"
	if h.Config.VM.Kernel != "" {
		for _, path := range []string{h.Config.VM.Kernel, h.Config.VM.Initrd} {
			if _, err := os.Stat(path); err != nil {
				return fail("correct vm.kernel and vm.initrd in the configuration, or leave both out and "+advice, "%v", err)
			}
		}
		return ok("kernel %s, initrd %s, of the configuration", h.Config.VM.Kernel, h.Config.VM.Initrd)
	}
	guest, err := guestimage.Load(filepath.Join(h.Config.Root, "guest"))
	if err != nil {
		return fail(advice, "%v", err)
	}
	return ok("kernel %s from %s", guest.KernelVersion, guest.Source)
}

func (h host) transport(context.Context) finding {
	device := filepath.Join(h.dev, "vhost-vsock")
	if _, err := os.Stat(device); err != nil {
		return ok("virtio-serial: there is no %s (with it, streams into guests are faster: modprobe vhost_vsock)", device)
	}
	return ok("vsock")
}

func (h host) tun(context.Context) finding {
	device := filepath.Join(h.dev, "net", "tun")
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fail("modprobe tun; in a container, pass the device in", "%v", err)
	}
	_ = f.Close()
	return ok("%s opens", device)
}

func (h host) network(context.Context) finding {
	n := h.Config.Network
	if n.CNIConfDir == "" {
		return ok("built-in bridge %s: %s", n.Bridge.Name, strings.TrimSuffix(n.Bridge.IPv4+", "+n.Bridge.IPv6, ", "))
	}
	var found []string
	for _, pattern := range []string{"*.conflist", "*.conf", "*.json"} {
		matches, _ := filepath.Glob(filepath.Join(n.CNIConfDir, pattern)) // the pattern is good
		found = append(found, matches...)
	}
	if len(found) == 0 {
		return fail("install a CNI network, or leave network.cni_conf_dir out to use the built-in bridge", "no CNI configuration in %s", n.CNIConfDir)
	}
	for _, dir := range n.CNIBinDirs {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			slices.Sort(found)
			return ok("CNI: %s, plugins in %s", found[0], dir)
		}
	}
	return fail("install the CNI plugins that the configuration names", "no plugins in %s", strings.Join(n.CNIBinDirs, ", "))
}

func (h host) nftables(context.Context) finding {
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTables()
	}
	if err != nil {
		return fail("modprobe nf_tables; the daemon needs CAP_NET_ADMIN", "the kernel's nftables do not answer: %v", err)
	}
	return ok("the kernel answers")
}

func (h host) cgroups(context.Context) finding {
	data, err := os.ReadFile(filepath.Join(h.proc, "self", "mountinfo"))
	if err != nil {
		return fail("mount /proc", "%v", err)
	}
	v1, unified, quick := map[string]bool{}, "", false
	for line := range strings.Lines(string(data)) {
		mount, super, split := strings.Cut(line, " - ")
		fields, place := strings.Fields(super), strings.Fields(mount)
		if !split || len(fields) < 3 || len(place) < 5 {
			continue
		}
		quick = quick || strings.HasPrefix(fields[0], "cgroup") && strings.Contains(fields[2], "favordynmods")
		switch fields[0] {
		case "cgroup2":
			unified = place[4]
		case "cgroup":
			for option := range strings.SplitSeq(fields[2], ",") {
				v1[option] = true
			}
		}
	}
	var missing []string
	for _, c := range []string{"memory", "cpu", "pids"} {
		if !v1[c] {
			missing = append(missing, c)
		}
	}
	advice := ""
	if unified != "" && !quick {
		advice = "for faster starts of pods, mount -o remount,favordynmods " + unified + " (Linux 6.0): joining a cgroup waits 10 ms without"
	}
	switch {
	case len(missing) == 0:
		return finding{level: LevelOK, detail: "version 1; the kubelet needs failCgroupV1: false", advice: advice}
	case len(v1) == 0 && unified != "":
		return finding{level: LevelOK, detail: "version 2", advice: advice}
	case unified != "" || len(v1) > 0:
		return fail("mount the missing controllers, or boot with cgroup version 2 alone", "no %s controller is mounted", strings.Join(missing, ", "))
	}
	return fail("mount /sys/fs/cgroup", "none are mounted")
}

func (h host) mkfs(context.Context) finding {
	path, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		return fail("Debian: apt install e2fsprogs", "%v", err)
	}
	return ok("%s", path)
}

func (h host) diskSpace(context.Context) finding {
	// The directory may not be there yet: its nearest parent is on the same file system.
	dir := h.Config.Root
	var stat unix.Statfs_t
	for {
		err := unix.Statfs(dir, &stat)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return fail("", "%s: %v", dir, err)
		}
		dir = filepath.Dir(dir)
	}
	free := stat.Bavail * uint64(stat.Bsize)
	detail := fmt.Sprintf("%.1f GiB free for %s", float64(free)/gib, h.Config.Root)
	switch {
	case free < minDisk:
		return fail("make room, or set root to a larger file system", "%s", detail)
	case free < wantDisk:
		return warn("images and the disks of pods may fill it: make room", "%s", detail)
	}
	return ok("%s", detail)
}

func (h host) memory(context.Context) finding {
	available, err := meminfo(filepath.Join(h.proc, "meminfo"), "MemAvailable")
	if err != nil {
		return warn("", "%v", err)
	}
	detail := fmt.Sprintf("%d MiB available, a pod without limits has %d MiB", available/mib, h.Config.VM.MemoryMiB)
	if available < h.Config.VM.MemoryMiB*mib {
		return fail("free memory, or lower vm.memory_mib", "%s", detail)
	}
	return ok("%s", detail)
}

// meminfo reads one line of /proc/meminfo, in bytes.
func meminfo(path, key string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		name, rest, _ := strings.Cut(scanner.Text(), ":")
		if name != key {
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 53)
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", path, key, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("%s: no %s: %w", path, key, errdefs.ErrNotFound)
}
