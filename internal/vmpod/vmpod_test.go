package vmpod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

var errFault = errors.New("fault")

// fakeShims keeps the bundles that exist as directories, as the real ones do.
type fakeShims struct {
	mu         sync.Mutex
	last       launchRequest
	launchErr  error
	cleanupErr error
	vm         *shimv1.VM // what shims say of it; nil: something
	features   []string
}

func (f *fakeShims) launch(_ context.Context, r launchRequest) (client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = r
	if err := os.Mkdir(r.bundle, 0o700); err != nil {
		return nil, err
	}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	return fakeClient{vm: f.vm, features: f.features}, f.launchErr
}

func (f *fakeShims) connect(_ context.Context, bundle string) (client, error) {
	if _, err := os.Stat(bundle); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return fakeClient{vm: f.vm, features: f.features}, nil
}

func (f *fakeShims) cleanup(_ context.Context, bundle string) error {
	if f.cleanupErr != nil {
		return f.cleanupErr
	}
	return os.RemoveAll(bundle)
}

type fakeClient struct {
	task.Service
	vm       *shimv1.VM
	features []string
}

func (fakeClient) WaitSandbox(context.Context) (task.Exit, error) {
	return task.Exit{Reason: "powered off"}, nil
}

func (c fakeClient) Info(context.Context) (*shimv1.InfoResponse, error) {
	if c.vm != nil {
		return &shimv1.InfoResponse{Vm: proto.CloneOf(c.vm), Features: c.features}, nil
	}
	return &shimv1.InfoResponse{ShimPid: 5, Features: c.features, Vm: &shimv1.VM{Hypervisor: "qemu", Phases: []*shimv1.Phase{{Name: "boot"}}}}, nil
}

func (c fakeClient) ResizeVM(_ context.Context, vcpus uint32, memory uint64) error {
	if memory > 1<<30 {
		return fmt.Errorf("too much: %w", errdefs.ErrResourceExhausted)
	}
	c.vm.Vcpus, c.vm.MemoryBytes = vcpus, memory
	return nil
}

func (fakeClient) Stop(context.Context, time.Duration) error { return nil }
func (fakeClient) Kill(context.Context) error                { return nil }
func (fakeClient) Close() error                              { return nil }

func newTestLauncher(t *testing.T, uids *UIDs) (*Launcher, *fakeShims, string) {
	t.Helper()
	dir := t.TempDir()
	f := &fakeShims{}
	l, err := newLauncher(Options{
		Config: config.VM{VMSize: config.VMSize{VCPUs: 1, MemoryMiB: 256}, ScratchMiB: 64}, Shim: "/shim",
		Host: func(context.Context) (Machine, error) {
			return Machine{Hypervisor: "qemu", Binary: "/qemu", Accel: hypervisor.TCG, Guest: Guest{Kernel: "/kernel", Initrd: "/initrd"}}, nil
		},
		NewScratch: func(_ context.Context, path string, _ int64) error { return os.WriteFile(path, nil, 0o600) },
		UIDs:       uids, Dir: filepath.Join(dir, "pods"), ScratchDir: filepath.Join(dir, "scratch"), ConsoleDir: filepath.Join(dir, "consoles"), CgroupParent: "pistis",
		Log: slog.New(slog.DiscardHandler),
	}, f)
	if err != nil {
		t.Fatal(err)
	}
	return l, f, dir
}

// request returns a launch request and where its state is saved.
func request(id string) (sandbox.LaunchRequest, *json.RawMessage) {
	var saved json.RawMessage
	return sandbox.LaunchRequest{
		ID: id, Config: sandbox.Config{Identity: sandbox.Identity{Name: "a"}, Hostname: "a", Sysctls: map[string]string{"net.core.somaxconn": "9"}},
		NetNS: "/netns/" + id,
		Connected: func(context.Context) (sandbox.Connection, error) {
			return sandbox.Connection{IPs: []string{"10.0.0.2"}, DNS: sandbox.DNS{Servers: []string{"10.0.0.1"}}}, nil
		},
		Save: func(s json.RawMessage) error { saved = s; return nil },
	}, &saved
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); strings.Count(rel, "/") == 1 {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestLaunchReconnectCleanup(t *testing.T) {
	uids := NewUIDs(1000, 1001)
	l, f, dir := newTestLauncher(t, uids)
	req, saved := request("s1")
	i, err := l.Launch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if info := i.Info(); info["shimPid"] != "5" || info["hypervisor"] != "qemu" || info["phase.boot"] != "0s" {
		t.Errorf("info %v", info)
	}
	o := f.last.options
	if f.last.netns != "/netns/s1" || o.Vm.Uid != 1000 || o.Vm.Gid != 1000 || o.Vm.MemoryBytes != 256<<20 || o.Cgroup != "pistis/pistis-s1" ||
		o.Vm.Acceleration != "tcg" || o.Vm.Kernel != "/kernel" || string(o.ResolvConf) != "nameserver 10.0.0.1\n" ||
		!strings.Contains(string(o.Hosts), "10.0.0.2\ta\n") || o.Sysctls["net.core.somaxconn"] != "9" {
		t.Errorf("asked for %v", o)
	}

	// Another daemon takes over: the uid stays taken.
	again, _, _ := newTestLauncher(t, NewUIDs(1000, 1001))
	again.Dir, again.ScratchDir = l.Dir, l.ScratchDir
	req.State = *saved
	if _, err := again.Reconnect(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	other, _ := request("s2")
	if _, err := again.Launch(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	third, _ := request("s3")
	if _, err := again.Launch(t.Context(), third); !errdefs.IsResourceExhausted(err) {
		t.Errorf("third of two uids: %v", err)
	}
	for _, id := range []string{"s1", "s1", "s2", "s3"} {
		if err := again.Cleanup(t.Context(), sandbox.LaunchRequest{ID: id, State: *saved}); err != nil {
			t.Error(err)
		}
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	if _, err := again.Reconnect(t.Context(), req); !errdefs.IsUnavailable(err) {
		t.Errorf("after the end: %v", err)
	}
}

// fakeUnits remembers what was asked of systemd.
type fakeUnits struct{ said string }

func (f *fakeUnits) StartScope(_ context.Context, name, slice string, pid int) error {
	f.said = fmt.Sprintf("%s in %s of %d", name, slice, pid)
	return nil
}

// TestSystemdCgroup: with systemd the shim is put into a scope, whose path the shim is told.
func TestSystemdCgroup(t *testing.T) {
	l, f, _ := newTestLauncher(t, NewUIDs(0, 0))
	units := &fakeUnits{}
	l.Units, l.CgroupParent = units, "pistis.slice"
	for parent, want := range map[string][2]string{
		"":                            {"pistis-s1.scope in pistis.slice of 7", "pistis.slice/pistis-s1.scope"},
		"/kube.slice/kube-pod1.slice": {"pistis-s1.scope in kube-pod1.slice of 7", "kube.slice/kube-pod1.slice/pistis-s1.scope"},
	} {
		req, _ := request("s1")
		req.Config.CgroupParent = parent
		if err := l.Validate(req.Config); err != nil {
			t.Errorf("%q: %v", parent, err)
		}
		if _, err := l.Launch(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if err := f.last.adopt(7); err != nil {
			t.Fatal(err)
		}
		if got := [2]string{units.said, f.last.options.Cgroup}; got != want {
			t.Errorf("%q: %q, want %q", parent, got, want)
		}
		if err := l.Cleanup(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Validate(sandbox.Config{CgroupParent: "/kubepods/pod1"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path for systemd: %v", err)
	}
}

// TestResize: the shim is told what the pod's resources come to, and what it has then is told.
func TestResize(t *testing.T) {
	l, f, _ := newTestLauncher(t, NewUIDs(1000, 1001))
	f.vm, f.features = &shimv1.VM{Vcpus: 1, MemoryBytes: 256 << 20}, []string{shimv1.FeatureResize}
	req, _ := request("s1")
	launched, err := l.Launch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	i := launched.(*instance)
	if o := f.last.options.Vm; o.MaxVcpus < 1 || o.MaxMemoryBytes != 256<<20 || o.BaseMemoryBytes != 256<<20 {
		t.Errorf("bounds of the VM: %v", o)
	}
	cfg := sandbox.Config{Resources: sandbox.Resources{MemoryLimit: 100 << 20}, Overhead: sandbox.Resources{MemoryLimit: 28 << 20}}
	if err := errors.Join(i.Resize(t.Context(), cfg), i.Refresh(t.Context())); err != nil || i.Info()["memoryBytes"] != fmt.Sprint(384<<20) {
		t.Errorf("resize: %v, %v", err, i.Info())
	}
	cfg.Resources.MemoryLimit = 1 << 30
	if err := i.Resize(t.Context(), cfg); !errdefs.IsResourceExhausted(err) {
		t.Errorf("what the shim refuses: %v", err)
	}
}

// TestMemoryRoom: a VM can grow whose pod has a limit, or where the configuration says so.
func TestMemoryRoom(t *testing.T) {
	limited := sandbox.Config{Resources: sandbox.Resources{MemoryLimit: 1 << 20}}
	most := machine{bounds: bounds{vcpus: 1, memory: 1 << 40, host: 1}}
	for _, c := range []struct {
		cfg       sandbox.Config
		mib, want uint64
	}{
		{sandbox.Config{}, 0, 256 << 20},
		{limited, 0, 257<<20 + 32<<30},
		{sandbox.Config{}, 1 << 20, 1 << 40},
	} {
		var vm config.VM
		vm.MemoryMiB, vm.MaxMemoryMiB = 256, c.mib
		m := most
		m.vcpus, m.memory = size(c.cfg, vm, most.bounds)
		if got := sandboxOptions(c.cfg, vm, m).Vm.MaxMemoryBytes; got != c.want {
			t.Errorf("%+v: %d, want %d", c, got, c.want)
		}
	}
}

// TestMaxMemory: a pod that needs more than the configured bound is refused.
func TestMaxMemory(t *testing.T) {
	l, f, _ := newTestLauncher(t, NewUIDs(1000, 1001))
	l.Config.MaxMemoryMiB, l.Config.MaxVCPUs = 300, 3
	req, _ := request("s1")
	req.Config.Resources.MemoryLimit = 45 << 20
	if _, err := l.Launch(t.Context(), req); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "vm.max_memory_mib") {
		t.Errorf("beyond the bound: %v", err)
	}
	req.Config.Resources.MemoryLimit = 44 << 20
	if _, err := l.Launch(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if o := f.last.options.Vm; o.MaxVcpus != 3 || o.MaxMemoryBytes != 300<<20 {
		t.Errorf("bounds of the VM: %v", o)
	}
}

// TestTuning: what Firecracker does to its VMs is said of those alone.
func TestTuning(t *testing.T) {
	file := filepath.Join(t.TempDir(), "template.json")
	c := config.Firecracker{DiskBandwidth: 5, NetOps: 6, CPUTemplate: file}
	vm := config.VM{Reclaim: true}
	if got, err := tuningOf(c, vm, Machine{Hypervisor: config.DriverQEMU}); err != nil || !got.Reclaim || got.DiskBytes != 0 || got.NetOps != 0 {
		t.Errorf("for QEMU: %v, %v", got, err)
	}
	fc := Machine{Hypervisor: config.DriverFirecracker}
	if _, err := tuningOf(c, vm, fc); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a template that is not there: %v", err)
	}
	for text, ok := range map[string]bool{"{}": true, "nonsense": false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := tuningOf(c, vm, fc)
		if ok != (err == nil) || ok && (got.DiskBytes != 5 || got.NetOps != 6 || string(got.CpuTemplate) != text) {
			t.Errorf("template %q: %v, %v", text, got, err)
		}
	}
}

func TestResizeOfAnOlderShim(t *testing.T) {
	l, f, _ := newTestLauncher(t, NewUIDs(1000, 1001))
	f.vm = &shimv1.VM{Vcpus: 1, MemoryBytes: 384 << 20}
	req, _ := request("s1")
	i, err := l.Launch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	resize := i.(interface {
		Resize(context.Context, sandbox.Config) error
	}).Resize
	cfg := sandbox.Config{Resources: sandbox.Resources{MemoryLimit: 100 << 20}, Overhead: sandbox.Resources{MemoryLimit: 28 << 20}}
	if err := resize(t.Context(), cfg); err != nil {
		t.Errorf("what it has room for: %v", err)
	}
	cfg.Resources.MemoryLimit++
	if err := resize(t.Context(), cfg); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "would need 1 and 385 MiB") {
		t.Errorf("more memory: %v", err)
	}
	if err := resize(t.Context(), sandbox.Config{Resources: sandbox.Resources{CPUPeriod: 1000, CPUQuota: 1001}}); runtime.NumCPU() > 1 && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("more processors: %v", err)
	}
}

func TestFailedLaunchIsCleanedByItsState(t *testing.T) {
	for name, breakIt := range map[string]func(l *Launcher, f *fakeShims, req *sandbox.LaunchRequest){
		"host": func(l *Launcher, _ *fakeShims, _ *sandbox.LaunchRequest) {
			l.Host = func(context.Context) (Machine, error) { return Machine{}, errFault }
		},
		"save": func(_ *Launcher, _ *fakeShims, r *sandbox.LaunchRequest) {
			r.Save = func(json.RawMessage) error { return errFault }
		},
		"scratch": func(l *Launcher, _ *fakeShims, _ *sandbox.LaunchRequest) {
			l.NewScratch = func(context.Context, string, int64) error { return errFault }
		},
		"shim": func(_ *Launcher, f *fakeShims, _ *sandbox.LaunchRequest) { f.launchErr = errFault },
	} {
		t.Run(name, func(t *testing.T) {
			uids := NewUIDs(1000, 1000)
			l, f, dir := newTestLauncher(t, uids)
			req, saved := request("s1")
			breakIt(l, f, &req)
			if _, err := l.Launch(t.Context(), req); !errors.Is(err, errFault) {
				t.Fatalf("got %v", err)
			}
			req.State = *saved
			if err := l.Cleanup(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			if left := files(t, dir); len(left) != 0 {
				t.Errorf("left over: %v", left)
			}
			if uid, err := uids.allocate("next"); err != nil || uid != 1000 {
				t.Errorf("the uid is still taken: %v", err)
			}
		})
	}
}

func TestFailedCleanupKeepsTheUID(t *testing.T) {
	uids := NewUIDs(1000, 1000)
	l, f, _ := newTestLauncher(t, uids)
	f.cleanupErr = errFault
	if err := l.Cleanup(t.Context(), sandbox.LaunchRequest{ID: "s1", State: json.RawMessage(`{"UID":1000}`)}); !errors.Is(err, errFault) {
		t.Errorf("got %v", err)
	}
	if _, err := uids.allocate("next"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("the uid of a VM that may still run was given away: %v", err)
	}
}

// TestConsoleIsKept: of VMs that did not end as they should, the latest.
func TestConsoleIsKept(t *testing.T) {
	l, f, _ := newTestLauncher(t, NewUIDs(0, 0))
	f.features = []string{shimv1.FeatureConsole}
	req, _ := request("s1")
	i, err := l.Launch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	said := func(id, old, text string) {
		t.Helper()
		console := bundle.Dir(l.bundle(id)).Console()
		if err := errors.Join(os.WriteFile(console+".old", []byte(old), 0o600), os.WriteFile(console, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if reason, err := i.Wait(t.Context()); err != nil || reason != "powered off" {
		t.Errorf("without a console: %q, %v", reason, err)
	}
	said("s1", "one\n", "two\n")
	if at := i.Info()["console"]; at != filepath.Join(l.bundle("s1"), "console.log") {
		t.Errorf("the console is told to be at %q", at)
	}
	if reason, err := i.Wait(t.Context()); err != nil || !strings.HasSuffix(reason, l.console("s1")) {
		t.Errorf("reason: %q, %v", reason, err)
	}
	if err := l.Cleanup(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(l.console("s1")); err != nil || string(got) != "one\ntwo\n" {
		t.Errorf("kept: %q, %v", got, err)
	}
	if err := os.Chtimes(l.console("s1"), time.Time{}, time.Unix(1, 0)); err != nil { // the oldest, however fast the others come
		t.Fatal(err)
	}
	f.launchErr = errFault
	for n := range keptConsoles + 3 {
		req, _ := request(fmt.Sprintf("n%d", n))
		if _, err := l.Launch(t.Context(), req); !errors.Is(err, errFault) {
			t.Fatal(err)
		}
		said(req.ID, "", "panic\n")
		if err := l.Cleanup(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(l.ConsoleDir)
	if err != nil || len(left) != keptConsoles {
		t.Errorf("%d consoles are kept, %v", len(left), err)
	}
	if _, err := os.Stat(l.console("s1")); err == nil {
		t.Error("the oldest is kept")
	}
}

// TestConsoleOfAnOlderShim: it leaves the console of a VM that was stopped as well, which is not one to keep.
func TestConsoleOfAnOlderShim(t *testing.T) {
	l, _, _ := newTestLauncher(t, NewUIDs(0, 0))
	req, _ := request("s1")
	i, err := l.Launch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bundle.Dir(l.bundle("s1")).Console(), []byte("booted\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if reason, err := i.Wait(t.Context()); err != nil || reason != "powered off" {
		t.Errorf("reason: %q, %v", reason, err)
	}
	if err := errors.Join(i.Stop(t.Context()), l.Cleanup(t.Context(), req)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(l.ConsoleDir); err != nil || len(left) > 0 {
		t.Errorf("kept: %v, %v", left, err)
	}
}

func TestSweep(t *testing.T) {
	l, _, dir := newTestLauncher(t, NewUIDs(0, 0))
	for _, path := range []string{l.bundle("kept"), l.bundle("lost")} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{l.scratch("kept"), l.scratch("lost"), l.scratch("lost2")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sweep(t.Context(), map[string]bool{"kept": true}); err != nil {
		t.Fatal(err)
	}
	if left := files(t, dir); !slices.Equal(left, []string{"pods/kept", "scratch/kept.img"}) {
		t.Errorf("left: %v", left)
	}
}

func TestValidate(t *testing.T) {
	l, _, _ := newTestLauncher(t, NewUIDs(0, 0))
	if err := l.Validate(sandbox.Config{}); err != nil {
		t.Error(err)
	}
	for _, cfg := range []sandbox.Namespaces{{HostNetwork: true}, {HostPID: true}, {HostIPC: true}} {
		if err := l.Validate(sandbox.Config{Namespaces: cfg}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "RuntimeClass") {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestSize(t *testing.T) {
	const mib = 1 << 20
	vm := config.VM{VMSize: config.VMSize{VCPUs: 2, MemoryMiB: 256}}
	cpu := func(quota int64) sandbox.Resources { return sandbox.Resources{CPUPeriod: 100000, CPUQuota: quota} }
	for _, c := range []struct {
		name                string
		resources, overhead sandbox.Resources
		vcpus               uint32
		memory              uint64
	}{
		{"nothing asked", sandbox.Resources{}, sandbox.Resources{}, 2, 256 * mib},
		{"half a cpu", cpu(50000), sandbox.Resources{}, 1, 256 * mib},
		{"one and overhead", cpu(100000), cpu(25000), 2, 256 * mib},
		{"more than the host", cpu(100000 * 100), sandbox.Resources{}, 8, 256 * mib},
		{"overhead alone is no limit", sandbox.Resources{}, cpu(25000), 2, 256 * mib},
		{"memory", sandbox.Resources{MemoryLimit: 100*mib + 1}, sandbox.Resources{MemoryLimit: 10 * mib}, 2, 367 * mib},
		{"more memory than the host", sandbox.Resources{MemoryLimit: 1 << 50}, sandbox.Resources{}, 2, 4096 * mib},
		{"unlimited", sandbox.Resources{CPUQuota: -1, CPUPeriod: 100000, MemoryLimit: -1}, sandbox.Resources{}, 2, 256 * mib},
	} {
		most := bounds{vcpus: 8, memory: 4096*mib + 1, host: 8}
		vcpus, memory := size(sandbox.Config{Resources: c.resources, Overhead: c.overhead}, vm, most)
		if err := most.check(vm, vcpus, memory); err != nil || vcpus != c.vcpus || memory != c.memory {
			t.Errorf("%s: %d vcpus, %d bytes, %v, want %d, %d", c.name, vcpus, memory, err, c.vcpus, c.memory)
		}
	}
	limits := sandbox.Config{Resources: cpu(100000 * 3), Overhead: cpu(1000)} // 4 processors
	for _, c := range []struct {
		name       string
		configured uint32
		most       bounds
		vcpus      uint32
		refusal    string
	}{
		{"more than a VM has on a host that has more", 0, bounds{vcpus: 3, host: 8}, 4, "a virtual machine has 3"},
		{"more than is configured", 3, bounds{vcpus: 3, host: 2}, 4, "4 processors, and vm.max_vcpus allows 3"},
		{"as much as is configured, and more than the host has", 4, bounds{vcpus: 4, host: 2}, 4, ""},
	} {
		vm.MaxVCPUs = c.configured
		vcpus, memory := size(limits, vm, c.most)
		err := c.most.check(vm, vcpus, memory)
		if vcpus != c.vcpus || c.refusal == "" && err != nil || c.refusal != "" && (!errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), c.refusal)) {
			t.Errorf("%s: %d, %v", c.name, vcpus, err)
		}
	}
}

func TestUIDsAreUsedInTurn(t *testing.T) {
	u := NewUIDs(10, 12)
	for i, want := range []uint32{10, 11, 12, 10} {
		id := fmt.Sprint(i)
		if got, err := u.allocate(id); err != nil || got != want {
			t.Errorf("%d: got %d, %v, want %d", i, got, err, want)
		}
		u.release(id)
	}
	if err := u.claim("a", 11); err != nil {
		t.Fatal(err)
	}
	if err := u.claim("b", 11); !errdefs.IsAlreadyExists(err) {
		t.Errorf("claimed twice: %v", err)
	}
	if got, err := NewUIDs(0, 0).allocate("a"); got != 0 || err != nil {
		t.Errorf("without a range: %d, %v", got, err)
	}
}
