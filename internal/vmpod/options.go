package vmpod

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// Machine is how VMs are run on this host.
type Machine struct {
	// Hypervisor is a driver's name, Binary its program.
	Hypervisor, Binary string
	Accel              hypervisor.Acceleration
	Guest
}

// machine is what is decided for one launch beside the pod's own configuration.
type machine struct {
	Machine
	uid           uint32
	scratch       string
	cgroup        string
	hosts, resolv []byte
	vcpus         uint32
	memory        uint64 // bytes
	bounds        bounds
	tuning        *shimv1.Tuning
}

// maxTemplate bounds a CPU template.
const maxTemplate = 32 << 10

// tuningOf reads what the configuration names.
func tuningOf(t config.Firecracker, vm config.VM, m Machine) (*shimv1.Tuning, error) {
	out := &shimv1.Tuning{Reclaim: vm.Reclaim}
	if m.Hypervisor != config.DriverFirecracker {
		return out, nil
	}
	out.DiskBytes, out.DiskOps, out.NetBytes, out.NetOps = t.DiskBandwidth, t.DiskOps, t.NetBandwidth, t.NetOps
	if t.CPUTemplate == "" {
		return out, nil
	}
	text, err := os.ReadFile(t.CPUTemplate)
	if err != nil {
		return nil, fmt.Errorf("CPU template: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if len(text) > maxTemplate || !json.Valid(text) {
		return nil, fmt.Errorf("CPU template %s: it is not JSON of at most %d bytes: %w", t.CPUTemplate, maxTemplate, errdefs.ErrFailedPrecondition)
	}
	out.CpuTemplate = text
	return out, nil
}

// Room to grow that is not used costs memory: that of a GiB 96 KiB of QEMU's, that of a processor 280 KiB of the guest's. So
// there is not more of it than this, unless the configuration says how much a VM may have.
const (
	roomVCPUs  = 16
	roomMemory = 32 << 30
)

// bounds are the most that a VM gets.
type bounds struct {
	vcpus  uint32
	memory uint64 // bytes
	host   uint32 // processors of the host
}

// boundsOf are the configured ones, or what the host has.
func boundsOf(vm config.VM) (bounds, error) {
	b := bounds{vm.MaxVCPUs, vm.MaxMemoryMiB << 20, uint32(runtime.NumCPU())}
	if b.vcpus == 0 {
		b.vcpus = min(b.host, config.MostVCPUs)
	}
	if b.memory == 0 {
		var host unix.Sysinfo_t
		if err := unix.Sysinfo(&host); err != nil {
			return bounds{}, fmt.Errorf("memory of the host: %w", err)
		}
		b.memory = host.Totalram * uint64(host.Unit)
	}
	return b, nil
}

// memoryRoom is none for a pod without a limit: the kubelet gives it none while it runs either, and a hostile guest can take the
// room of its VM without being given it, which then nothing but the host's memory would bound.
func memoryRoom(cfg sandbox.Config) uint64 {
	if cfg.Resources.MemoryLimit <= 0 {
		return 0
	}
	return roomMemory
}

// sandboxOptions is the complete description that a shim gets.
func sandboxOptions(cfg sandbox.Config, vm config.VM, m machine) *shimv1.SandboxOptions {
	vcpus, memory := m.vcpus, m.memory
	most := m.bounds
	if vm.MaxVCPUs == 0 {
		most.vcpus = min(most.vcpus, vcpus+roomVCPUs)
	}
	if vm.MaxMemoryMiB == 0 {
		most.memory = min(most.memory, memory+memoryRoom(cfg))
	}
	return &shimv1.SandboxOptions{
		Vm: &shimv1.VMOptions{
			Hypervisor:   m.Hypervisor,
			Binary:       m.Binary,
			Kernel:       m.Kernel,
			Initrd:       m.Initrd,
			KernelParams: slices.Clone(vm.KernelParams),
			Acceleration: string(m.Accel),
			Vcpus:        vcpus,
			MemoryBytes:  memory,
			Uid:          m.uid,
			Gid:          m.uid,
			BootTimeout:  durationpb.New(vm.BootTimeout.Duration),
			Machine:      machineType(vm, m),

			MaxVcpus: most.vcpus, MaxMemoryBytes: most.memory, BaseMemoryBytes: base(cfg, vm),
			Tuning: m.tuning,
		},
		Hostname:   cfg.Hostname,
		Hosts:      m.hosts,
		ResolvConf: m.resolv,
		Sysctls:    maps.Clone(cfg.Sysctls),
		SharedPid:  cfg.SharedPID,
		Scratch:    m.scratch,
		Modules:    m.Modules,
		Cgroup:     m.cgroup,
	}
}

// machineType is for the only hypervisor that has some.
func machineType(vm config.VM, m machine) string {
	if m.Hypervisor != config.DriverQEMU {
		return ""
	}
	return vm.Machine
}

// size is how many virtual processors and how many bytes of memory the pod's VM gets. Processors: what the limits of the
// containers and the overhead add up to, rounded up; without limits the configured default. Memory: the configured base,
// which the guest's kernel and agent live on and containers without limits too, plus limits and overhead.
//
// Limits that are wider than the host are none on the host's kernel either: unless the configuration bounds it, such a pod has all
// processors and as much memory as there is.
func size(cfg sandbox.Config, vm config.VM, most bounds) (vcpus uint32, memoryBytes uint64) {
	const mib = 1 << 20
	vcpus = max(vm.VCPUs, 1)
	if milli := milliCPU(cfg.Resources); milli > 0 {
		vcpus = uint32(min((milli+milliCPU(cfg.Overhead)+999)/1000, 1<<16))
	}
	if vm.MaxVCPUs == 0 {
		vcpus = min(vcpus, most.host)
	}
	memoryBytes = (base(cfg, vm) + uint64(max(cfg.Resources.MemoryLimit, 0)) + mib - 1) / mib * mib
	if vm.MaxMemoryMiB == 0 {
		memoryBytes = min(memoryBytes, most.memory/mib*mib)
	}
	return vcpus, memoryBytes
}

// check refuses the size of a new VM that the configuration does not allow: the pod would never reach its limits. One that runs has
// the bounds that it was made with, which its shim holds.
func (b bounds) check(vm config.VM, vcpus uint32, memoryBytes uint64) error {
	switch {
	case vcpus > b.vcpus && vm.MaxVCPUs == 0:
		return fmt.Errorf("the pod's CPU limits and overhead come to %d processors, and a virtual machine has %d at most: %w", vcpus, b.vcpus, errdefs.ErrResourceExhausted)
	case vcpus > b.vcpus:
		return fmt.Errorf("the pod's CPU limits and overhead come to %d processors, and vm.max_vcpus allows %d at most: lower the limits, or raise the setting: %w",
			vcpus, b.vcpus, errdefs.ErrResourceExhausted)
	case vm.MaxMemoryMiB > 0 && memoryBytes > b.memory:
		return fmt.Errorf("the pod's microVM would need %d MiB of memory, and vm.max_memory_mib allows %d MiB at most: lower the limits, or raise the setting: %w",
			memoryBytes>>20, vm.MaxMemoryMiB, errdefs.ErrResourceExhausted)
	}
	return nil
}

// base is the part of the memory that does not come from the containers' limits.
func base(cfg sandbox.Config, vm config.VM) uint64 {
	return vm.MemoryMiB<<20 + uint64(max(cfg.Overhead.MemoryLimit, 0))
}

// milliCPU of a quota, in thousandths of a processor; 0 is no limit.
func milliCPU(r sandbox.Resources) int64 {
	if r.CPUQuota <= 0 || r.CPUPeriod <= 0 {
		return 0
	}
	return (r.CPUQuota*1000 + r.CPUPeriod - 1) / r.CPUPeriod
}
