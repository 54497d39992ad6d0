package qemu

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

// Identifiers of things on the command line.
const (
	consoleID   = "console"
	monitorID   = "monitor"
	transportID = "transport"
	memoryID    = "common"
	scsiID      = "scsi"
	growthID    = "growth"
)

// memoryDriver is the device as which a guest has memory in common with the host.
const memoryDriver = "virtio-pmem-pci"

// descriptors are the numbers that the child has inherited its files under.
type descriptors struct {
	monitor, console int
	kernel, initrd   int
	// pipe is the virtio-serial transport's socket; 0 with vsock, which has the context id cid.
	pipe int
	// memory is what host and guest have in common; 0: nothing.
	memory int
	vsock  int
	cid    uint32
	taps   []int
	// vhostNet has one for every tap, or none where the host has no vhost-net.
	vhostNet []int
	disks    []int
}

// commandLine is QEMU's arguments, without the program. cfg is valid. It is pure.
func commandLine(cfg hypervisor.Config, fds descriptors) []string {
	args := []string{
		"-name", "guest=pistis-" + escape(cfg.ID) + ",debug-threads=on",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", machine(cfg),
		"-cpu", cpu(cfg.Accel),
		"-smp", processors(cfg),
		"-m", memory(cfg, fds),
		"-kernel", inherited(fds.kernel),
	}
	if fds.initrd != 0 {
		args = append(args, "-initrd", inherited(fds.initrd))
	}
	args = append(args,
		"-append", kernelParams(cfg, fds),
		"-chardev", fmt.Sprintf("socket,id=%s,fd=%d", monitorID, fds.monitor),
		"-mon", "chardev="+monitorID+",mode=control",
		"-chardev", fmt.Sprintf("socket,id=%s,fd=%d", consoleID, fds.console),
		"-serial", "chardev:"+consoleID,
		"-object", `{"qom-type":"rng-builtin","id":"rng"}`,
		"-device", `{"driver":"virtio-rng-pci","rng":"rng","disable-legacy":"on"}`,
		"-device", `{"driver":"virtio-scsi-pci","id":"`+scsiID+`","disable-legacy":"on"}`,
	)
	if fds.pipe == 0 {
		args = append(args, "-device", fmt.Sprintf(
			`{"driver":"vhost-vsock-pci","guest-cid":%d,"vhostfd":"%d","disable-legacy":"on"}`, fds.cid, fds.vsock))
	} else {
		args = append(args,
			"-device", `{"driver":"virtio-serial-pci","max_ports":2,"disable-legacy":"on"}`,
			"-chardev", fmt.Sprintf("socket,id=%s,fd=%d", transportID, fds.pipe),
			"-device", `{"driver":"virtserialport","chardev":"`+transportID+`","name":"`+transport.SerialPort+`"}`)
	}
	for i, nic := range cfg.NICs {
		args = append(args, nicArgs(nic, i, fds)...)
	}
	// Growth comes first: its place has to be one of whole blocks of the guest's memory.
	args = append(args, growth(cfg)...)
	if fds.memory != 0 {
		args = append(args,
			"-object", fmt.Sprintf(`{"qom-type":"memory-backend-file","id":"%s","mem-path":"%s","size":%d,"share":true}`, memoryID, inherited(fds.memory), transport.MemorySize),
			"-device", `{"driver":"`+memoryDriver+`","memdev":"`+memoryID+`","disable-legacy":"on"}`)
	}
	if cfg.Reclaim {
		args = append(args, "-device", `{"driver":"virtio-balloon-pci","free-page-reporting":true,"disable-legacy":"on"}`)
	}
	for lun, disk := range cfg.Disks {
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", fds.disks[lun], fdset(uint32(lun))),
			"-blockdev", encode(blockdev(disk, uint32(lun))),
			"-device", encode(scsiDisk(disk, uint32(lun))))
	}
	return args
}

// processors are one socket's: those of the start, and those that can be plugged.
func processors(cfg hypervisor.Config) string {
	if cfg.MaxVCPUs <= cfg.VCPUs {
		return strconv.Itoa(cfg.VCPUs)
	}
	return fmt.Sprintf("%d,maxcpus=%d", cfg.VCPUs, cfg.MaxVCPUs)
}

// memory is what the guest starts with, and the room for what can be added and for what it has in common with the host.
func memory(cfg hypervisor.Config, fds descriptors) string {
	start, most := cfg.Memory>>20, (cfg.Memory+cfg.Growth())>>20
	if fds.memory != 0 {
		most += transport.MemorySize >> 20
	}
	if most == start {
		return fmt.Sprintf("%dM", start)
	}
	return fmt.Sprintf("%dM,maxmem=%dM", start, most)
}

// growth is the device that adds memory. What is not added takes none of the host's.
func growth(cfg hypervisor.Config) []string {
	if cfg.Growth() == 0 {
		return nil
	}
	return []string{
		"-object", encode(map[string]any{"qom-type": "memory-backend-ram", "id": growthID + "ram", "size": cfg.Growth(), "reserve": false}),
		"-device", encode(map[string]any{
			"driver": "virtio-mem-pci", "id": growthID, "memdev": growthID + "ram", "requested-size": 0, "disable-legacy": "on",
		}),
	}
}

// machine is q35 without what a microVM has no use for, unless the configuration names another.
func machine(cfg hypervisor.Config) string {
	kind := cfg.Machine
	if kind == "" {
		kind = "q35,usb=off,vmport=off,smm=off,sata=off,smbus=off,i8042=off,hpet=off,dump-guest-core=off"
	}
	return kind + ",accel=" + string(cfg.Accel)
}

// grows tells whether processors and memory can be added to a machine of that kind, and devices that are memory: to PCs, of which
// q35 is one.
func grows(machine string) bool {
	kind, _, _ := strings.Cut(machine, ",")
	return kind == "" || kind == "q35" || kind == "pc" || strings.HasPrefix(kind, "pc-")
}

// cpu masks cmpxchg16b under TCG: QEMU 7.2 computes its flags wrongly, and kernels that use it for their
// allocator die within seconds. svm is masked because QEMU warns of what TCG cannot do in it.
func cpu(accel hypervisor.Acceleration) string {
	if accel == hypervisor.KVM {
		return "host"
	}
	return "EPYC,-cx16,-svm"
}

// kernelParams are the driver's parameters and then the configuration's, which win.
func kernelParams(cfg hypervisor.Config, fds descriptors) string {
	carrier := transport.KindSerial
	if fds.pipe == 0 {
		carrier = transport.KindVSOCK
	}
	params := []string{
		"console=ttyS0", "quiet", "8250.nr_uarts=1",
		// A kernel that panics resets at once, and a reset ends QEMU.
		"panic=-1", "reboot=t",
		"random.trust_cpu=on", "cryptomgr.notests", "rcupdate.rcu_expedited=1",
		transport.Param + carrier,
	}
	if cfg.Accel == hypervisor.TCG {
		// Emulated time is too coarse for the kernel's checks, and there is nothing to mitigate.
		// Patching the kernel for a single processor costs more than what it saves.
		params = append(params, "no_timer_check", "tsc=reliable", "mitigations=off", "noreplace-smp")
	}
	if fds.memory != 0 && cfg.Growth() == 0 {
		params = append(params, vmm.NoBounceBuffers)
	}
	params = append(params, vmm.GrowthParams(cfg)...)
	return strings.Join(append(params, cfg.Params...), " ")
}

func nicArgs(nic hypervisor.NIC, i int, fds descriptors) []string {
	backend := fmt.Sprintf("tap,id=net%d,fd=%d,vhost=off", i, fds.taps[i])
	if len(fds.vhostNet) > 0 {
		backend = fmt.Sprintf("tap,id=net%d,fd=%d,vhost=on,vhostfd=%d", i, fds.taps[i], fds.vhostNet[i])
	}
	device := map[string]any{
		"driver": "virtio-net-pci", "id": fmt.Sprintf("nic%d", i), "netdev": fmt.Sprintf("net%d", i),
		"mac": net.HardwareAddr(nic.MAC).String(), "romfile": "", "disable-legacy": "on",
	}
	if nic.MTU > 0 {
		device["host_mtu"] = nic.MTU
	}
	return []string{"-netdev", backend, "-device", encode(device)}
}

// fdset is the number of the descriptor set that holds the disk at a LUN.
func fdset(lun uint32) int { return int(lun) + 1 }

func nodeName(lun uint32) string { return fmt.Sprintf("disk%d", lun) }
func deviceID(lun uint32) string { return fmt.Sprintf("lun%d", lun) }

// blockdev is a raw image behind a descriptor set. Read-only images are not locked: VMs share them.
func blockdev(d hypervisor.Disk, lun uint32) map[string]any {
	driver := "file"
	if isBlock(d.File) {
		driver = "host_device"
	}
	file := map[string]any{"driver": driver, "filename": fmt.Sprintf("/dev/fdset/%d", fdset(lun)), "aio": "threads"}
	if d.ReadOnly {
		file["locking"] = "off"
	}
	return map[string]any{
		"driver": "raw", "node-name": nodeName(lun), "read-only": d.ReadOnly, "discard": "unmap", "file": file,
	}
}

func isBlock(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode().Type() == fs.ModeDevice
}

// scsiDisk reports errors to the guest, where QEMU's default would stop the VM when the host's disk is full.
func scsiDisk(d hypervisor.Disk, lun uint32) map[string]any {
	return map[string]any{
		"driver": "scsi-hd", "id": deviceID(lun), "bus": scsiID + ".0", "scsi-id": 0, "lun": lun,
		"drive": nodeName(lun), "device_id": d.ID, "werror": "report", "rerror": "report",
	}
}

// encode turns a description into JSON. Maps of strings, numbers and truth values always encode.
func encode(v map[string]any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// inherited is a path to an inherited descriptor, for options that take files by path alone.
func inherited(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// escape doubles commas, as QEMU's option parser wants it.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
