package cloudhypervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"strings"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

// Names in the jail, and of the socket in the run directory.
const (
	kernelFile  = "/kernel"
	initrdFile  = "/initrd"
	vsockSocket = "vsock.sock"
)

// guestCID is the guest's address on a bus that it has for itself.
const guestCID = 3

// maxSerial is the length of a virtio disk's serial.
const maxSerial = 20

// The descriptors that it inherits.
const (
	apiFD   = vmm.FirstFD
	eventFD = vmm.FirstFD + 1
)

type vmConfig struct {
	CPUs    cpus     `json:"cpus"`
	Memory  memory   `json:"memory"`
	Payload payload  `json:"payload"`
	RNG     rng      `json:"rng"`
	Serial  port     `json:"serial"`
	Console port     `json:"console"`
	VSOCK   vsock    `json:"vsock"`
	Balloon *balloon `json:"balloon,omitempty"`
	PMem    []pmem   `json:"pmem"`
	// Landlock confines it to the rules and to what is named above.
	Landlock bool   `json:"landlock_enable"`
	Rules    []rule `json:"landlock_rules,omitempty"`
}

type cpus struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
	// PhysBits bounds the guest's addresses.
	PhysBits int `json:"max_phys_bits"`
}

// pmem is memory in common with the host.
type pmem struct {
	ID   string `json:"id"`
	File string `json:"file"`
	Size uint64 `json:"size"`
}

// physBits: persistent memory is at the end of what a guest can address, and kernels that place their mapping of all memory at
// random have room there for some 10 TiB.
const physBits = 43

type memory struct {
	Size uint64 `json:"size"`
	// Hotplug is what can be added, by a device that the guest has a driver for.
	Hotplug uint64 `json:"hotplug_size,omitempty"`
	Method  string `json:"hotplug_method,omitempty"`
}

// resize leaves out what is to stay.
type resize struct {
	VCPUs int    `json:"desired_vcpus,omitempty"`
	RAM   uint64 `json:"desired_ram,omitempty"`
}

type vmInfo struct {
	Memory uint64 `json:"memory_actual_size"`
}

type payload struct {
	Kernel string `json:"kernel"`
	Initrd string `json:"initramfs,omitempty"`
	Params string `json:"cmdline"`
}

type rng struct {
	Source string `json:"src"`
}

type port struct {
	Mode string `json:"mode"`
}

type vsock struct {
	CID    int    `json:"cid"`
	Socket string `json:"socket"`
}

// balloon is never inflated: the guest reports what is free.
type balloon struct {
	Size         uint64 `json:"size"`
	DeflateOnOOM bool   `json:"deflate_on_oom"`
	Reporting    bool   `json:"free_page_reporting"`
}

type rule struct {
	Path   string `json:"path"`
	Access string `json:"access"`
}

type disk struct {
	ID       string `json:"id"`
	Serial   string `json:"serial"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readonly"`
	Type     string `json:"image_type"`
}

// nic has no MTU: Cloud Hypervisor would set it on the tap, which its user may not. Guests set their own.
type nic struct {
	ID  string `json:"id"`
	MAC string `json:"mac"`
}

// description is the whole machine but its disks and cards. It is pure.
func description(cfg hypervisor.Config, landlock bool) vmConfig {
	c := vmConfig{
		CPUs: cpus{Boot: cfg.VCPUs, Max: max(cfg.VCPUs, cfg.MaxVCPUs), PhysBits: physBits}, Memory: memory{Size: cfg.Memory},
		Payload: payload{Kernel: kernelFile, Params: kernelParams(cfg)},
		RNG:     rng{Source: "/dev/urandom"},
		// "Tty" is the standard output, whatever that is.
		Serial: port{Mode: "Tty"}, Console: port{Mode: "Off"},
		VSOCK: vsock{CID: guestCID, Socket: vmm.JailDir + "/" + vsockSocket},
		PMem:  []pmem{{ID: "common", File: vmm.MemoryFile, Size: transport.MemorySize}},
	}
	if cfg.Initrd != "" {
		c.Payload.Initrd = initrdFile
	}
	if growth := cfg.Growth(); growth > 0 {
		c.Memory.Hotplug, c.Memory.Method = growth, "VirtioMem"
	}
	if cfg.Reclaim {
		c.Balloon = &balloon{DeflateOnOOM: true, Reporting: true}
	}
	if landlock {
		c.Landlock, c.Rules = true, []rule{{Path: vmm.DiskDir, Access: "rw"}, {Path: vmm.JailDir, Access: "rw"}}
	}
	return c
}

func diskRequest(d hypervisor.Disk) disk {
	return disk{ID: d.ID, Serial: serial(d.ID), Path: vmm.DiskDir + "/" + d.ID, ReadOnly: d.ReadOnly, Type: "Raw"}
}

// serial is the id, or what stands for one that is too long.
func serial(id string) string {
	if len(id) <= maxSerial {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:maxSerial/2])
}

func nicRequest(n hypervisor.NIC) nic {
	return nic{ID: n.ID, MAC: net.HardwareAddr(n.MAC).String()}
}

// kernelParams are the driver's parameters and then the configuration's, which win.
func kernelParams(cfg hypervisor.Config) string {
	params := []string{
		"console=ttyS0", "quiet", "8250.nr_uarts=1",
		// A kernel that panics resets at once, which the driver is told of.
		"panic=-1", "reboot=a",
		"random.trust_cpu=on", "cryptomgr.notests", "rcupdate.rcu_expedited=1",
		transport.Param + transport.KindPipe,
	}
	params = append(params, vmm.GrowthParams(cfg)...)
	return strings.Join(append(params, cfg.Params...), " ")
}
