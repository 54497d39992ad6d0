package firecracker

import (
	"encoding/json"
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
	metricsPipe = "metrics"
	// emptyImage is what drives have whose disk was detached.
	emptyImage = "empty"
	emptyPath  = vmm.JailDir + "/" + emptyImage
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
	Cache string       `json:"cache_type"`
	Rate  *rateLimiter `json:"rate_limiter,omitempty"`
}

type networkInterface struct {
	ID  string       `json:"iface_id"`
	Tap string       `json:"host_dev_name"`
	MAC string       `json:"guest_mac"`
	MTU int          `json:"mtu,omitempty"`
	RX  *rateLimiter `json:"rx_rate_limiter,omitempty"`
	TX  *rateLimiter `json:"tx_rate_limiter,omitempty"`
}

// rateLimiter bounds bytes and operations.
type rateLimiter struct {
	Bandwidth *bucket `json:"bandwidth,omitempty"`
	Ops       *bucket `json:"ops,omitempty"`
}

// bucket is refilled within some milliseconds.
type bucket struct {
	Size   uint64 `json:"size"`
	Refill uint64 `json:"refill_time"`
}

// limiter is nil where nothing is bounded.
func limiter(r hypervisor.Rate) *rateLimiter {
	perSecond := func(n uint64) *bucket {
		if n == 0 {
			return nil
		}
		return &bucket{Size: n, Refill: 1000}
	}
	if r == (hypervisor.Rate{}) {
		return nil
	}
	return &rateLimiter{Bandwidth: perSecond(r.Bytes), Ops: perSecond(r.Ops)}
}

// memoryHotplug is the device that adds memory. Blocks and slots have Firecracker's default sizes.
type memoryHotplug struct {
	TotalMiB uint64 `json:"total_size_mib"`
}

// balloon is never inflated: the guest reports what is free.
type balloon struct {
	MiB          uint64 `json:"amount_mib"`
	DeflateOnOOM bool   `json:"deflate_on_oom"`
	Reporting    bool   `json:"free_page_reporting"`
}

// pmem is memory in common with the host.
type pmem struct {
	ID   string `json:"id"`
	Path string `json:"path_on_host"`
}

type memoryRequest struct {
	MiB uint64 `json:"requested_size_mib"`
}

type memoryStatus struct {
	PluggedMiB uint64 `json:"plugged_size_mib"`
}

const (
	memoryPath   = "/hotplug/memory"
	templatePath = "/cpu-config"
	// commonID names the memory that guest and host have in common.
	commonID = "common"
)

type vsock struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// arguments are Firecracker's, without the program.
func arguments(cfg hypervisor.Config, can abilities, filtered bool) []string {
	var args []string
	if can.plug {
		args = append(args, "--enable-pci")
	}
	args = append(args, "--api-sock", vmm.JailDir+"/"+apiSocket, "--log-path", vmm.JailDir+"/"+logPipe, "--level", "Warn",
		"--metrics-path", vmm.JailDir+"/"+metricsPipe)
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
func description(cfg hypervisor.Config, can abilities, taps []string) []request {
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
	if cfg.CPUTemplate != nil {
		requests = append(requests, request{templatePath, json.RawMessage(cfg.CPUTemplate)})
	}
	if can.memory {
		requests = append(requests, request{"/pmem/" + commonID, pmem{ID: commonID, Path: vmm.MemoryFile}})
	}
	if growth := cfg.Growth(); growth > 0 {
		requests = append(requests, request{memoryPath, memoryHotplug{TotalMiB: growth >> 20}})
	}
	if cfg.Reclaim {
		requests = append(requests, request{"/balloon", balloon{DeflateOnOOM: true, Reporting: true}})
	}
	for i, nic := range cfg.NICs {
		id := apiID(nic.ID)
		requests = append(requests, request{"/network-interfaces/" + id, networkInterface{
			ID: id, Tap: taps[i], MAC: net.HardwareAddr(nic.MAC).String(), MTU: nic.MTU,
			RX: limiter(cfg.NetRate), TX: limiter(cfg.NetRate),
		}})
	}
	return requests
}

// driveRequest plugs a disk as a drive.
func driveRequest(d hypervisor.Disk, name string, rate hypervisor.Rate) request {
	return request{drivePath + name, drive{ID: name, Path: diskPrefix + d.ID, ReadOnly: d.ReadOnly, Cache: "Writeback", Rate: limiter(rate)}}
}

// placeholderRequest is a drive without a disk.
func placeholderRequest(d device, rate hypervisor.Rate) request {
	return request{drivePath + d.name, drive{ID: d.name, Path: emptyPath, ReadOnly: d.readOnly, Cache: "Writeback", Rate: limiter(rate)}}
}

// imageRequest gives a drive another image.
func imageRequest(name, image string) request {
	return request{drivePath + name, map[string]string{"drive_id": name, "path_on_host": image}}
}

const drivePath = "/drives/"

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
