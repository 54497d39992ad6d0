package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/network/tap"
	"github.com/pistis-run/pistis/internal/vm"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

var update = flag.Bool("update", false, "write the golden files")

func request(t *testing.T, d *vmtest.Driver) vm.Request {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"kernel", "scratch", "layer0", "layer1", "layer2"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return vm.Request{
		ID: "pod1",
		Options: &shimv1.SandboxOptions{
			Hostname: "pod1",
			Scratch:  filepath.Join(dir, "scratch"),
			Vm: &shimv1.VMOptions{
				Hypervisor: "fake", Kernel: filepath.Join(dir, "kernel"), Acceleration: "tcg", Vcpus: 1, MemoryBytes: 128 << 20,
				BootTimeout: durationpb.New(5 * time.Second),
			},
		},
		RunDir:     filepath.Join(dir, "vm"),
		ConsoleLog: filepath.Join(dir, "console.log"),
		Driver:     d,
	}
}

func boot(t *testing.T, d *vmtest.Driver) (*vm.VM, vm.Request) {
	t.Helper()
	req := request(t, d)
	v, err := vm.Boot(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Kill(context.Background(), errors.New("end of test")) })
	return v, req
}

func TestConfigGolden(t *testing.T) {
	c := vm.Config("pod1", &shimv1.VMOptions{
		Hypervisor: "qemu", Binary: "/usr/bin/qemu", Machine: "q35", Kernel: "/k", Initrd: "/i", KernelParams: []string{"quiet"},
		Acceleration: "kvm", Vcpus: 2, MemoryBytes: 1 << 30, Uid: 1000, Gid: 1001,
	}, []tap.NIC{{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1400}})
	// Functions and writers do not encode; a pure config has none.
	got, err := json.MarshalIndent(struct {
		ID, Binary, Machine, Accel, Kernel, Initrd string
		Params                                     []string
		VCPUs                                      int
		Memory                                     uint64
		NICs, User                                 any
	}{c.ID, c.Binary, c.Machine, string(c.Accel), c.Kernel, c.Initrd, c.Params, c.VCPUs, c.Memory, c.NICs, c.User}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/config.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/config.json")
	if err != nil || string(want) != string(got) {
		t.Errorf("config differs from testdata/config.json (%v); run with -update and look at the difference:\n%s", err, got)
	}
}

func TestBootAndStop(t *testing.T) {
	agent := &vmtest.Agent{}
	d := &vmtest.Driver{Agent: agent, Console: "booting\n"}
	v, req := boot(t, d)
	var phases []string
	for _, p := range v.Phases() {
		phases = append(phases, p.Name)
	}
	if got := strings.Join(phases, " "); got != "network vmm kernel+agent configure" {
		t.Errorf("phases = %s", got)
	}
	if data, _ := os.ReadFile(req.ConsoleLog); string(data) != "booting\n" {
		t.Errorf("console log = %q", data)
	}
	c := agent.Configured()
	if c.Hostname != "pod1" || c.Scratch == nil || len(c.Entropy) != 64 {
		t.Errorf("configured with %v", c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := v.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.Err(); err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("Err = %v", err)
	}
	if _, err := os.Stat(req.RunDir); err == nil {
		t.Error("the run directory is left")
	}
	if err := v.Stop(ctx); err != nil {
		t.Errorf("second Stop = %v", err)
	}
	if _, err := os.Stat(req.ConsoleLog); err == nil {
		t.Error("the console of a guest that ended as it should is kept")
	}
}

func TestNetwork(t *testing.T) {
	agent := &vmtest.Agent{}
	req := request(t, &vmtest.Driver{Agent: agent})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	req.NetNS = "/run/netns/x"
	req.AttachNetwork = func(_ context.Context, path string) ([]tap.NIC, error) {
		return []tap.NIC{{
			Name: "eth0", Tap: r, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1400,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
			Routes:    []tap.Route{{Gateway: netip.MustParseAddr("10.0.0.1")}},
			Sysctls:   map[string]string{"net.ipv4.conf.eth0.rp_filter": "0"},
		}}, nil
	}
	req.InspectNetwork = func(context.Context, string) (tap.Report, error) {
		return tap.Report{Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "net.core.somaxconn": "1"}}, nil
	}
	req.Options.Sysctls = map[string]string{"net.core.somaxconn": "2"}
	v, err := vm.Boot(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Kill(t.Context(), errors.New("end of test"))
	n := agent.Configured()
	if i := n.Network.Interfaces[0]; i.Name != "eth0" || i.Addresses[0] != "10.0.0.2/24" || i.Mtu != 1400 {
		t.Errorf("interface = %v", i)
	}
	if rt := n.Network.Routes[0]; rt.Destination != "" || rt.Gateway != "10.0.0.1" || rt.Source != "" {
		t.Errorf("route = %v", rt)
	}
	if n.Sysctls["net.ipv4.conf.eth0.rp_filter"] != "0" || n.Sysctls["net.ipv4.ip_forward"] != "1" || n.Sysctls["net.core.somaxconn"] != "2" {
		t.Errorf("sysctls = %v", n.Sysctls)
	}
	if _, err := r.Stat(); err == nil {
		t.Error("the tap is open still")
	}
}

// TestBootFails tries everything that can go wrong on the way; nothing must be left, and the error must tell.
func TestBootFails(t *testing.T) {
	tests := []struct {
		name   string
		driver *vmtest.Driver
		change func(*vm.Request)
		want   string
		class  func(error) bool
	}{
		{"no memory", &vmtest.Driver{}, func(r *vm.Request) { r.Options.Vm.MemoryBytes = 1 << 20 }, "too little to boot", errdefs.IsInvalidArgument},
		{"no kernel", &vmtest.Driver{}, func(r *vm.Request) { r.Options.Vm.Kernel = "/does/not/exist" }, "kernel cannot be used", errdefs.IsFailedPrecondition},
		{"no options", &vmtest.Driver{}, func(r *vm.Request) { r.Options = nil }, "no VM options", errdefs.IsInvalidArgument},
		{"preparation fails", &vmtest.Driver{}, func(r *vm.Request) { r.Prepare = func() error { return errdefs.ErrPermissionDenied } }, "", errdefs.IsPermissionDenied},
		{"no VMM", &vmtest.Driver{StartErr: errdefs.ErrNotFound}, nil, "not found", errdefs.IsNotFound},
		{"silent guest", &vmtest.Driver{NoDialer: true, Console: "panic: no init\n"}, shortBoot, "panic: no init", isDeadline},
		{"silent agent", &vmtest.Driver{Agent: &vmtest.Agent{Silent: true}}, shortBoot, "not ready within", isDeadline},
		{"old agent", &vmtest.Driver{Agent: &vmtest.Agent{Version: 7}}, nil, "version 7", errdefs.IsFailedPrecondition},
		{"garbage agent", &vmtest.Driver{Agent: &vmtest.Agent{Raw: garbage}}, shortBoot, "", nil},
		{"hang up", &vmtest.Driver{Agent: &vmtest.Agent{Raw: func(c net.Conn) { c.Close() }}}, nil, "lost", errdefs.IsUnavailable},
		{"configure refused", &vmtest.Driver{Agent: &vmtest.Agent{Intercept: refuse("ConfigureSandbox")}}, nil, "no such sysctl", errdefs.IsInvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := request(t, tt.driver)
			if tt.change != nil {
				tt.change(&req)
			}
			v, err := vm.Boot(t.Context(), req)
			if err == nil {
				v.Kill(t.Context(), errors.New("end of test"))
				t.Fatal("it booted")
			}
			if isRefused := strings.Contains(tt.name, "refused"); isRefused && strings.Contains(err.Error(), "console") {
				t.Errorf("error = %v: the console explains nothing here", err)
			}
			if !strings.Contains(err.Error(), tt.want) || tt.class != nil && !tt.class(err) {
				t.Errorf("error = %v, want %q of the right class", err, tt.want)
			}
			for _, m := range tt.driver.Machines() {
				select {
				case <-m.Done():
				default:
					t.Error("a machine is left")
				}
			}
			if _, err := os.Stat(req.RunDir); err == nil {
				t.Error("the run directory is left")
			}
		})
	}
}

func shortBoot(r *vm.Request) { r.Options.Vm.BootTimeout = durationpb.New(50 * time.Millisecond) }

func isDeadline(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

func garbage(c net.Conn) {
	io.WriteString(c, strings.Repeat("\xff\x00garbage", 1000))
	io.Copy(io.Discard, c)
}

func refuse(method string) func(string) error {
	return func(m string) error {
		if m == method {
			return status.Error(codes.InvalidArgument, "no such sysctl")
		}
		return nil
	}
}

func TestEarlyEnd(t *testing.T) {
	d := &vmtest.Driver{NoDialer: true, Console: "Kernel panic\n"}
	req := request(t, d)
	req.Started = func(int) error {
		go func() {
			for len(d.Machines()) == 0 {
				time.Sleep(time.Millisecond)
			}
			d.Machines()[0].End(errors.New("exit status 1; the guest's last console lines: Kernel panic"))
		}()
		return nil
	}
	_, err := vm.Boot(t.Context(), req)
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || strings.Count(err.Error(), "Kernel panic") != 1 {
		t.Errorf("error = %v", err)
	}
}

// TestStopOfHungAgent: an agent that never answers costs half of the time that the stop has.
func TestStopOfHungAgent(t *testing.T) {
	agent := &vmtest.Agent{}
	v, _ := boot(t, &vmtest.Driver{Agent: agent})
	hung := make(chan struct{})
	t.Cleanup(func() { close(hung) })
	agent.Intercept = func(string) error { <-hung; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := v.Stop(ctx); err != nil {
		t.Error(err)
	}
	select {
	case <-v.Done():
	default:
		t.Error("the VM runs still")
	}
}

func TestDeath(t *testing.T) {
	d := &vmtest.Driver{Agent: &vmtest.Agent{}, Console: "booting\n"}
	v, req := boot(t, d)
	d.Machines()[0].End(errors.New("signal: killed"))
	<-v.Done()
	if err := v.Err(); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Err = %v", err)
	}
	if data, _ := os.ReadFile(req.ConsoleLog); string(data) != "booting\n" {
		t.Errorf("console log = %q", data)
	}
}

func TestLayersAreShared(t *testing.T) {
	d := &vmtest.Driver{Agent: &vmtest.Agent{}}
	v, req := boot(t, d)
	dir := filepath.Dir(req.RunDir)
	layers := []vm.Disk{{Path: dir + "/layer0", ReadOnly: true}, {Path: dir + "/layer1", ReadOnly: true}}
	machine := d.Machines()[0]
	before := machine.Disks()
	a, err := v.AttachDisks(t.Context(), layers)
	if err != nil {
		t.Fatal(err)
	}
	b, err := v.AttachDisks(t.Context(), layers[:1])
	if err != nil {
		t.Fatal(err)
	}
	if a[0].String() != b[0].String() || machine.Disks() != before+2 {
		t.Errorf("addresses %v and %v, %d disks", a[0], b[0], machine.Disks()-before)
	}
	// The guest claims that everything is free, but a container uses layer0 still.
	if err := v.ReleaseDisks(t.Context(), layers, a); err != nil {
		t.Fatal(err)
	}
	if machine.Disks() != before+1 {
		t.Errorf("%d disks after the first release, want 1", machine.Disks()-before)
	}
	// A disk that does not exist and the scratch disk must not confuse the host.
	lies := append(b, &agentv1.DiskAddress{}, &agentv1.DiskAddress{Address: &agentv1.DiskAddress_ScsiLun{ScsiLun: 0}}, nil)
	if err := v.ReleaseDisks(t.Context(), layers[:1], lies); err != nil {
		t.Fatal(err)
	}
	if machine.Disks() != before {
		t.Errorf("%d disks at the end", machine.Disks()-before)
	}
}

// TestVolumesGoWithTheirLastUser: whatever the guest says is free.
func TestVolumesGoWithTheirLastUser(t *testing.T) {
	d := &vmtest.Driver{Agent: &vmtest.Agent{}}
	v, req := boot(t, d)
	machine := d.Machines()[0]
	before := machine.Disks()
	volume := []vm.Disk{{Path: filepath.Dir(req.RunDir) + "/layer0", Volume: true}}
	for range 2 {
		if _, err := v.AttachDisks(t.Context(), volume); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{1, 0} {
		if err := v.ReleaseDisks(t.Context(), volume, nil); err != nil || machine.Disks() != before+want {
			t.Errorf("%d disks, want %d; %v", machine.Disks()-before, want, err)
		}
	}
}

// TestOneVolumeInOneWay: two disks of one device would have a cache each in the guest.
func TestOneVolumeInOneWay(t *testing.T) {
	v, req := boot(t, &vmtest.Driver{Agent: &vmtest.Agent{}})
	dir := filepath.Dir(req.RunDir)
	for _, readOnly := range []bool{false, true} {
		first := []vm.Disk{{Path: dir + "/layer0", ReadOnly: readOnly, Volume: true}}
		if _, err := v.AttachDisks(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		if _, err := v.AttachDisks(t.Context(), []vm.Disk{{Path: dir + "/layer0", ReadOnly: !readOnly, Volume: true}}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("read-only first: %t: %v", readOnly, err)
		}
		if err := v.ReleaseDisks(t.Context(), first, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLayerLimits(t *testing.T) {
	d := &vmtest.Driver{Agent: &vmtest.Agent{}}
	v, req := boot(t, d)
	dir := filepath.Dir(req.RunDir)
	if _, err := v.AttachDisks(t.Context(), []vm.Disk{{Path: dir + "/layer0", ReadOnly: true}, {Path: dir + "/missing", ReadOnly: true}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("missing layer: %v", err)
	}
	if _, err := v.AttachDisks(t.Context(), []vm.Disk{{Path: dir, ReadOnly: true}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("directory: %v", err)
	}
	if err := os.Symlink(dir+"/layer0", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.AttachDisks(t.Context(), []vm.Disk{{Path: dir + "/link", ReadOnly: true}}); err == nil {
		t.Error("a symbolic link was followed")
	}
	for _, name := range "abcdefghij" {
		os.WriteFile(dir+"/"+string(name), nil, 0o600)
	}
	var err error
	for _, name := range "abcdefghij" {
		if _, err = v.AttachDisks(t.Context(), []vm.Disk{{Path: dir + "/" + string(name), ReadOnly: true}}); err != nil {
			break
		}
	}
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("too many layers: %v", err)
	}
}
