package hypervisor

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Driver starts VMs of one kind of VMM. It is stateless.
type Driver interface {
	// Name is the driver's name in configuration and logs, as qemu.
	Name() string
	// Version asks the VMM binary for its version. NotFound when there is no such binary, and
	// FailedPrecondition, with the number, for one that is too old to work with.
	Version(ctx context.Context, binary string) (string, error)
	// Capabilities are facts about what this driver's VMs can do.
	Capabilities() Capabilities
	// Start starts the VMM and the guest's processors; it does not wait for the guest. cfg is complete and
	// was checked with Config.Validate. On error nothing is left running. ctx bounds the call alone, not the VM.
	// The files in cfg stay the caller's: Start duplicates what the VMM needs.
	Start(ctx context.Context, cfg Config) (VM, error)
}

// VM is one running virtual machine.
type VM interface {
	// PID is the VMM's process id on the host.
	PID() int
	// Dial opens a stream to a port of the guest, whatever carries it. It retries while the guest is still
	// booting, until ctx ends or the VM does.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Shutdown waits until the guest that was told to power off has gone, and asks the VMM to quit when ctx ends.
	Shutdown(ctx context.Context) error
	// Kill ends the VMM at once. It is idempotent and does not wait: Done tells.
	Kill() error
	// Done is closed once, after the VMM was reaped.
	Done() <-chan struct{}
	// Err is nil until Done; then why the VMM ended: its exit status, its last words and the guest's.
	Err() error
}

// DiskPlugger attaches and detaches disks while the VM runs.
type DiskPlugger interface {
	AttachDisk(ctx context.Context, disk Disk) (DiskAddress, error)
	// DetachDisk removes the disk; the guest must have unmounted it.
	DetachDisk(ctx context.Context, id string) error
}

// Pauser stops and continues the guest's processors.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// MemoryResizer changes how much memory the running guest has.
type MemoryResizer interface {
	// ResizeMemory makes it so many bytes, rounded up to MemoryStep beyond Config.Memory, which it never falls below, and at
	// most Config.MaxMemory. It waits for the guest, until ctx ends; what the guest has then is returned, with an error too,
	// and 0 where the VMM does not tell.
	ResizeMemory(ctx context.Context, bytes uint64) (now uint64, err error)
}

// VCPUResizer changes how many processors the running guest has.
type VCPUResizer interface {
	// ResizeVCPUs gives the guest n processors, at least Config.VCPUs and at most Config.MaxVCPUs. New ones are there when it
	// returns, and the guest has to bring them into use. Those beyond n, which the guest has put out of use, are taken away,
	// unless the VMM cannot do that. How many the guest has then is returned, with an error too.
	ResizeVCPUs(ctx context.Context, n int) (now int, err error)
}

// MemorySharer has memory in common with the guest.
type MemorySharer interface {
	// CommonMemory is a file that the guest opens with transport.OpenMemory; nil: there is none. It stays the VM's. Its size is
	// transport.MemorySize, unless the VMM has changed that.
	CommonMemory() *os.File
}

// MemoryStep is what memory grows and shrinks by: a block of x86's kernels.
const MemoryStep = 128 << 20

// Capabilities are facts about a driver's VMs.
type Capabilities struct {
	// HotplugDisk: the VMs implement DiskPlugger.
	HotplugDisk bool
	// ResizeMemory: the VMs implement MemoryResizer, ResizeVCPUs: VCPUResizer.
	ResizeMemory, ResizeVCPUs bool
	// Tunable: rates and CPU templates of Config.Tuning work, Reclaims: so does the rest of it.
	Tunable, Reclaims bool
	// MaxDisks is how many disks a VM can have in all.
	MaxDisks int
	// MinMemory is the least guest memory in bytes with which a guest boots.
	MinMemory uint64
	// NeedsKVM: guests are not emulated.
	NeedsKVM bool
	// ELFKernel: the kernel must be an uncompressed vmlinux.
	ELFKernel bool
}

// PowerOffByReset on the kernel command line tells the guest's first process that the machine cannot be switched off and
// ends when it is reset.
const PowerOffByReset = "pistis.poweroff=reset"

// Acceleration is how guest code runs.
type Acceleration string

const (
	KVM Acceleration = "kvm"
	TCG Acceleration = "tcg"
)

// Config describes a VM completely. Paths are of the host.
type Config struct {
	// ID names the VM, for process titles and logs; the sandbox's id.
	ID string
	// Binary is the VMM's path; empty looks up the driver's default on PATH.
	Binary string
	// Machine overrides the driver's choice of a machine type; empty leaves it.
	Machine string
	Accel   Acceleration
	Kernel  string
	Initrd  string
	// Params are added to the kernel command line that the driver itself needs.
	Params []string
	Size
	Tuning
	// Disks that are there from the start.
	Disks []Disk
	NICs  []NIC
	// Console receives what the guest writes to its console. It must not block.
	Console io.Writer
	// RunDir is a directory of the caller's in which the driver may make sockets and files; the caller removes it.
	RunDir string
	// User that the VMM runs as; nil keeps the caller's.
	User *User
	// Started, where set, is called with the VMM's pid before the guest runs, to put it into a cgroup and to
	// record it. An error aborts the start.
	Started func(pid int) error
}

// Size is what a guest starts with and can have.
type Size struct {
	VCPUs int
	// Memory in bytes.
	Memory uint64
	// MaxVCPUs and MaxMemory are what the guest can grow to while it runs; 0 is that it cannot.
	MaxVCPUs  int
	MaxMemory uint64
}

// Tuning is what some VMMs can do to their VMs.
type Tuning struct {
	// DiskRate is of each disk, NetRate of each card in each direction.
	DiskRate, NetRate Rate
	// CPUTemplate is the VMM's own description of the guest's processors; nil are the host's.
	CPUTemplate []byte
	// Reclaim: memory that the guest does not use any more is given back to the host, by and by.
	Reclaim bool
}

// Rate is per second; 0 is no bound.
type Rate struct{ Bytes, Ops uint64 }

// User is the VMM's identity on the host.
type User struct{ UID, GID uint32 }

// Disk is a block device of the guest, backed by a raw image file.
type Disk struct {
	// ID is unique in the VM: letters, digits, '-', at most 64.
	ID string
	// File is the open image. It stays the caller's.
	File *os.File
	// ReadOnly disks may be shared between VMs.
	ReadOnly bool
}

// DiskAddress is where the guest finds a disk. One of the first fields is meaningful, by Kind.
type DiskAddress struct {
	Kind   DiskAddressKind
	LUN    uint32
	Serial string
	Device string
	// Bytes, where it is not 0, is the size that the guest has to see before it uses the disk: the device was there before.
	Bytes uint64
}

// DiskAddressKind says which field of a DiskAddress is meaningful.
type DiskAddressKind int

const (
	// SCSILUN: a LUN of target 0 on the only virtio-scsi controller.
	SCSILUN DiskAddressKind = iota + 1
	// BlkSerial: a virtio-blk serial.
	BlkSerial
	// BlkDevice: a device name that the machine fixes.
	BlkDevice
)

// NIC is a network card of the guest.
type NIC struct {
	ID string
	// Tap is an open tap queue without packet information and with a virtio-net header (IFF_VNET_HDR).
	// It stays the caller's; a driver whose VMM opens taps by name makes the device persistent and closes it.
	Tap *os.File
	MAC net.HardwareAddr
	MTU int
}

// Timeout for the calls of a driver to its VMM's control socket.
const ControlTimeout = 10 * time.Second

// Limit leaves out the growth that a driver's VMs are not capable of.
func (s *Size) Limit(caps Capabilities) {
	if !caps.ResizeVCPUs {
		s.MaxVCPUs = 0
	}
	if !caps.ResizeMemory {
		s.MaxMemory = 0
	}
}

// Growth is how many bytes of memory can be added while the guest runs, in whole steps.
func (s Size) Growth() uint64 {
	if s.MaxMemory <= s.Memory {
		return 0
	}
	return (s.MaxMemory - s.Memory) / MemoryStep * MemoryStep
}

// Added is how much of Growth a guest with so many bytes uses: whole steps, or an error for what cannot be.
func (s Size) Added(bytes uint64) (uint64, error) {
	if bytes <= s.Memory {
		return 0, nil
	}
	added := (bytes - s.Memory + MemoryStep - 1) / MemoryStep * MemoryStep
	if growth := s.Growth(); added > growth {
		return 0, fmt.Errorf("memory of %d MiB: this VM can have %d MiB at most: %w", bytes>>20, (s.Memory+growth)>>20, ErrTooLarge)
	}
	return added, nil
}

// CheckVCPUs reports a number of processors that the guest cannot have while it runs.
func (s Size) CheckVCPUs(n int) error {
	if most := max(s.VCPUs, s.MaxVCPUs); n < s.VCPUs || n > most {
		return fmt.Errorf("%d processors: this VM can have %d to %d: %w", n, s.VCPUs, most, ErrTooLarge)
	}
	return nil
}

// Validate reports the first thing that can never work.
func (c Config) Validate(caps Capabilities) error {
	switch {
	case c.ID == "":
		return fmt.Errorf("vm config: no id: %w", ErrInvalidConfig)
	case c.Kernel == "":
		return fmt.Errorf("vm config: no kernel: %w", ErrInvalidConfig)
	case c.Accel != KVM && c.Accel != TCG:
		return fmt.Errorf("vm config: acceleration %q is neither kvm nor tcg: %w", c.Accel, ErrInvalidConfig)
	case caps.NeedsKVM && c.Accel != KVM:
		return fmt.Errorf("vm config: this hypervisor runs under KVM alone, and acceleration %q is asked for: %w", c.Accel, ErrInvalidConfig)
	case c.VCPUs < 1:
		return fmt.Errorf("vm config: %d vcpus, at least 1 is needed: %w", c.VCPUs, ErrInvalidConfig)
	case c.Memory < caps.MinMemory:
		return fmt.Errorf("vm config: %d MiB of memory are too little to boot, at least %d MiB are needed: %w",
			c.Memory>>20, caps.MinMemory>>20, ErrInvalidConfig)
	case c.MaxVCPUs != 0 && c.MaxVCPUs < c.VCPUs:
		return fmt.Errorf("vm config: at most %d vcpus, and %d to begin with: %w", c.MaxVCPUs, c.VCPUs, ErrInvalidConfig)
	case c.MaxVCPUs > c.VCPUs && !caps.ResizeVCPUs:
		return fmt.Errorf("vm config: %d vcpus later, and this hypervisor cannot add any: %w", c.MaxVCPUs, ErrInvalidConfig)
	case c.MaxMemory != 0 && c.MaxMemory < c.Memory:
		return fmt.Errorf("vm config: at most %d MiB of memory, and %d to begin with: %w", c.MaxMemory>>20, c.Memory>>20, ErrInvalidConfig)
	case c.MaxMemory > c.Memory && !caps.ResizeMemory:
		return fmt.Errorf("vm config: %d MiB of memory later, and this hypervisor cannot add any: %w", c.MaxMemory>>20, ErrInvalidConfig)
	case !caps.Tunable && (c.DiskRate != Rate{} || c.NetRate != Rate{} || c.CPUTemplate != nil):
		return fmt.Errorf("vm config: rates of disks and networks, or a CPU template, and this hypervisor has none: %w", ErrInvalidConfig)
	case c.Reclaim && !caps.Reclaims:
		return fmt.Errorf("vm config: memory to be given back, and this hypervisor cannot do that: %w", ErrInvalidConfig)
	case caps.MaxDisks > 0 && len(c.Disks) > caps.MaxDisks:
		return fmt.Errorf("vm config: %d disks, at most %d can be attached: %w", len(c.Disks), caps.MaxDisks, ErrInvalidConfig)
	}
	return nil
}
