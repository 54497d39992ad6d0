package firecracker

import (
	"fmt"
	"net"
	"strings"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

// Names in the jail.
const (
	kernelFile = "/kernel"
	initrdFile = "/initrd"
	filterName = "/seccomp.bpf"
	diskPrefix = vmm.DiskDir + "/"
)

// Names of sockets and pipes in the run directory.
const (
	apiSocket   = "api.sock"
	vsockSocket = "vsock.sock"
	logPipe     = "log"
	// emptyImage is what drives have whose disk was detached.
	emptyImage = "empty"
)

// guestCID is the guest's address on a bus that it has for itself.
const guestCID = 3

// request is one of Firecracker's API.
type request struct {
	path string
	body any
}

type machineConfig struct {
	VCPUs     int    `json:"vcpu_count"`
	MemoryMiB uint64 `json:"mem_size_mib"`
}

type bootSource struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Params string `json:"boot_args"`
}

type drive struct {
	ID       string `json:"drive_id"`
	Path     string `json:"path_on_host"`
	Root     bool   `json:"is_root_device"`
	ReadOnly bool   `json:"is_read_only"`
	// Cache is Writeback, with which a guest's flush reaches the disk; the default ignores it.
	Cache string `json:"cache_type"`
}

type networkInterface struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
	MAC string `json:"guest_mac"`
	MTU int    `json:"mtu,omitempty"`
}

// memoryHotplug is the device that adds memory. Blocks and slots have Firecracker's default sizes.
type memoryHotplug struct {
	TotalMiB uint64 `json:"total_size_mib"`
}

type memoryRequest struct {
	MiB uint64 `json:"requested_size_mib"`
}

type memoryStatus struct {
	PluggedMiB uint64 `json:"plugged_size_mib"`
}

const memoryPath = "/hotplug/memory"

type vsock struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// arguments are Firecracker's, without the program.
func arguments(cfg hypervisor.Config, filtered bool) []string {
	args := []string{"--enable-pci", "--api-sock", vmm.JailDir + "/" + apiSocket, "--log-path", vmm.JailDir + "/" + logPipe, "--level", "Warn"}
	if validID(cfg.ID) {
		args = append(args, "--id", cfg.ID)
	}
	if filtered {
		args = append(args, "--seccomp-filter", filterName)
	}
	return args
}

// validID: Firecracker takes letters, digits and '-', at most 64.
func validID(id string) bool {
	return len(id) <= 64 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == "" && id != ""
}

// description is the whole machine but its disks, in the order in which it is told. taps are the names of the cards'
// taps. It is pure.
func description(cfg hypervisor.Config, taps []string) []request {
	boot := bootSource{Kernel: kernelFile, Params: kernelParams(cfg)}
	if cfg.Initrd != "" {
		boot.Initrd = initrdFile
	}
	requests := []request{
		{"/machine-config", machineConfig{VCPUs: cfg.VCPUs, MemoryMiB: cfg.Memory >> 20}},
		{"/boot-source", boot},
		{"/vsock", vsock{CID: guestCID, Path: vmm.JailDir + "/" + vsockSocket}},
		{"/entropy", struct{}{}},
	}
	if growth := cfg.Growth(); growth > 0 {
		requests = append(requests, request{memoryPath, memoryHotplug{TotalMiB: growth >> 20}})
	}
	for i, nic := range cfg.NICs {
		id := apiID(nic.ID)
		requests = append(requests, request{"/network-interfaces/" + id, networkInterface{
			ID: id, Tap: taps[i], MAC: net.HardwareAddr(nic.MAC).String(), MTU: nic.MTU,
		}})
	}
	return requests
}

// driveRequest plugs a disk; n makes its name another than that of an earlier plug.
func driveRequest(d hypervisor.Disk, n int) request {
	id := driveID(d.ID, n)
	return request{"/drives/" + id, drive{ID: id, Path: diskPrefix + d.ID, ReadOnly: d.ReadOnly, Cache: "Writeback"}}
}

// emptyRequest gives a drive the empty image.
func emptyRequest(id string, n int) request {
	name := driveID(id, n)
	return request{"/drives/" + name, map[string]string{"drive_id": name, "path_on_host": vmm.JailDir + "/" + emptyImage}}
}

func driveID(id string, n int) string { return fmt.Sprintf("%s_%d", apiID(id), n) }

// apiID writes our ids in the letters that Firecracker has for its: '_' for '-', which ours do not have.
func apiID(id string) string { return strings.ReplaceAll(id, "-", "_") }

// kernelParams are the driver's parameters and then the configuration's, which win.
func kernelParams(cfg hypervisor.Config) string {
	params := []string{
		"console=ttyS0", "quiet", "8250.nr_uarts=1", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd",
		// Firecracker has no power button: it ends when the keyboard controller resets the guest. A kernel that panics
		// does so at once.
		"panic=-1", "reboot=k", hypervisor.PowerOffByReset,
		"random.trust_cpu=on", "cryptomgr.notests", "rcupdate.rcu_expedited=1",
		transport.Param + transport.KindPipe,
	}
	params = append(params, vmm.GrowthParams(cfg)...)
	return strings.Join(append(params, cfg.Params...), " ")
}
