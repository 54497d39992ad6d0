package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/guestnet"
	"github.com/pistis-run/pistis/internal/agent/modules"
	"github.com/pistis-run/pistis/internal/reaper"
	"github.com/pistis-run/pistis/internal/steps"
)

const (
	defaultShm = 64 << 20
	// maxEntropy is more than the pool takes in.
	maxEntropy = 4096
	// maxName is the kernel's limit of a host name.
	maxName = 64
	maxText = 1 << 20
)

// PauseName is the name under which the agent runs as the first process of the pod's PID namespace.
const PauseName = "pause"

// sandbox is what ConfigureSandbox made of the guest.
type sandbox struct {
	begun, ready bool
	modules      bool // there are modules to load on demand
	mounts       []specs.Mount
	pause        *reaper.Process // nil unless the pod shares a PID namespace
}

// ConfigureSandbox implements agentv1.AgentService.
func (a *Agent) ConfigureSandbox(ctx context.Context, req *agentv1.ConfigureSandboxRequest) (*agentv1.ConfigureSandboxResponse, error) {
	if err := checkSandbox(req); err != nil {
		return nil, err
	}
	a.mu.Lock()
	begun := a.sandbox.begun
	a.sandbox.begun = true
	a.mu.Unlock()
	if begun {
		return nil, precondition("the sandbox was configured before")
	}
	s, err := a.configure(ctx, req)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sandbox = s
	return &agentv1.ConfigureSandboxResponse{}, nil
}

func checkSandbox(req *agentv1.ConfigureSandboxRequest) error {
	switch {
	case len(req.Hostname) > maxName || len(req.Domainname) > maxName:
		return invalid("host name %.70q or domain name %.70q: at most %d bytes are possible", req.Hostname, req.Domainname, maxName)
	case len(req.Entropy) > maxEntropy:
		return invalid("%d bytes of entropy, at most %d are possible", len(req.Entropy), maxEntropy)
	case len(req.Hosts) > maxText || len(req.ResolvConf) > maxText:
		return invalid("hosts or resolv.conf: at most %d bytes are possible", maxText)
	}
	for key := range req.Sysctls {
		if _, err := sysctlPath(key); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) configure(ctx context.Context, req *agentv1.ConfigureSandboxRequest) (sandbox, error) {
	s := sandbox{begun: true, ready: true}
	if req.Clock != nil {
		if err := setClock(req.Clock.AsTime()); err != nil {
			return s, err
		}
	}
	if err := addEntropy(req.Entropy); err != nil {
		return s, err
	}
	if err := setNames(req.Hostname, req.Domainname); err != nil {
		return s, err
	}
	_, end := steps.Start(ctx, "network")
	if err := guestnet.Apply(req.Network); err != nil {
		return s, err
	}
	end()
	if err := setSysctls(req.Sysctls); err != nil {
		return s, err
	}
	var err error
	if s.mounts, err = podFiles(filepath.Join(a.Dir, "sandbox"), req); err != nil {
		return s, err
	}
	_, end = steps.Start(ctx, "mount scratch")
	if err := a.Roots.Setup(ctx, req.Scratch); err != nil {
		return s, err
	}
	end()
	if req.Modules != nil {
		_, end := steps.Start(ctx, "mount modules")
		defer end()
		if err := modules.Offer(req.Modules); err != nil {
			return s, fmt.Errorf("kernel modules on demand: %w", err)
		}
		s.modules = true
	}
	if req.SharedPid {
		if s.pause, err = startPause(a.Reaper); err != nil {
			return s, fmt.Errorf("shared PID namespace: %w", err)
		}
	}
	return s, nil
}

// UpdateNetwork implements agentv1.AgentService.
func (a *Agent) UpdateNetwork(_ context.Context, req *agentv1.UpdateNetworkRequest) (*agentv1.Empty, error) {
	a.mu.Lock()
	ready := a.sandbox.ready
	a.mu.Unlock()
	if !ready {
		return nil, precondition("update network: the sandbox is not configured")
	}
	a.network.Lock()
	defer a.network.Unlock()
	return &agentv1.Empty{}, guestnet.Apply(req.Network)
}

// addEntropy mixes the host's random bytes into the pool and credits them: the host is trusted in all anyway.
func addEntropy(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: the entropy in bits, the size in bytes, then the bytes.
	var info struct {
		bits, size int32
		data       [maxEntropy]byte
	}
	info.bits, info.size = int32(len(b)*8), int32(copy(info.data[:], b))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	return nil
}

func setNames(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return fmt.Errorf("host name %q: %w", host, err)
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return fmt.Errorf("domain name %q: %w", domain, err)
		}
	}
	return nil
}

// sysctlPath is a key's path below /proc/sys. The first separator of a key is the separator of all: a name
// may hold the other one, as net/ipv4/conf/eth0.100/forwarding.
func sysctlPath(key string) (string, error) {
	path := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		path = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	if !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return "", invalid("sysctl %.200q: not a key", key)
	}
	return path, nil
}

func setSysctls(sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	root, err := os.OpenRoot("/proc/sys")
	if err != nil {
		return err
	}
	defer root.Close()
	for key, value := range sysctls {
		path, err := sysctlPath(key)
		if err != nil {
			return err
		}
		f, err := root.OpenFile(path, os.O_WRONLY, 0)
		if os.IsNotExist(err) {
			return invalid("sysctl %s: the guest's kernel does not have it", key)
		}
		if err != nil {
			return fmt.Errorf("sysctl %s: %w", key, err)
		}
		_, err = f.WriteString(value)
		f.Close()
		if err != nil {
			return invalid("sysctl %s: the kernel refuses %.200q: %w", key, value, err)
		}
	}
	return nil
}

// podFiles makes what all containers of the pod see, and returns how it is mounted.
func podFiles(dir string, req *agentv1.ConfigureSandboxRequest) ([]specs.Mount, error) {
	shm := filepath.Join(dir, "shm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// Containers write to these files: what they put there must not fill the memory that the agent works in.
	if err := unix.Mount("pod", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size="+strconv.Itoa(4*maxText)); err != nil {
		return nil, fmt.Errorf("pod files: %w", err)
	}
	if err := os.Mkdir(shm, 0o755); err != nil {
		return nil, err
	}
	var mounts []specs.Mount
	var hostname []byte
	if req.Hostname != "" {
		hostname = []byte(req.Hostname + "\n")
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{"hosts", req.Hosts}, {"resolv.conf", req.ResolvConf}, {"hostname", hostname}} {
		if len(f.content) == 0 {
			continue
		}
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, f.content, 0o644); err != nil {
			return nil, err
		}
		mounts = append(mounts, specs.Mount{Destination: "/etc/" + f.name, Type: "bind", Source: path, Options: []string{"bind", "rprivate"}})
	}
	size := req.ShmSize
	if size == 0 {
		size = defaultShm
	}
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size="+strconv.FormatUint(size, 10)); err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	return append(mounts, specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"bind", "rprivate", "nosuid", "nodev", "noexec"},
	}), nil
}

// startPause starts the first process of the pod's PID namespace, which lives as long as the guest.
func startPause(r *reaper.Reaper) (*reaper.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	return r.Start("/proc/self/exe", []string{PauseName}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{null, null, null}, Sys: pauseAttr(),
	})
}
