package hostpod

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/sandbox"
)

func TestShare(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: namespaces need root")
	}
	dir := t.TempDir()
	ns, err := netns.Create(filepath.Join(dir, "netns"), "p1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(ns); err != nil {
			t.Error(err)
		}
	})
	before, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
	if err != nil {
		t.Fatal(err)
	}
	p := pod{id: "p1", dir: filepath.Join(dir, "p1"), netns: ns, cfg: sandbox.Config{Hostname: "web", Sysctls: map[string]string{
		"net.ipv4.ip_default_ttl": "77", "kernel.shm_rmid_forced": "1",
	}}}
	if err := os.Mkdir(p.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.share(), p.setSysctls()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{p.ipc(), p.uts(), p.shm()} {
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.NSFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
			t.Errorf("%s: %v, type %x", path, err, fs.Type)
		}
	}
	other := exec.Command("cat")
	input, err := other.StdinPipe()
	if err == nil {
		err = other.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer input.Close()
	for _, c := range []struct {
		cfg  sandbox.Config
		want bool
	}{
		{sandbox.Config{}, true},
		{sandbox.Config{Namespaces: sandbox.Namespaces{HostNetwork: true, HostIPC: true, HostPID: true}}, true},
		{sandbox.Config{Namespaces: sandbox.Namespaces{HostPID: true}}, false}, // that process is not in the pod's
	} {
		err := pod{dir: p.dir, cfg: c.cfg}.onHost(uint32(other.Process.Pid))
		if c.want && err != nil || !c.want && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%+v: %v", c.cfg.Namespaces, err)
		}
	}
	if after, _ := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl"); string(after) != string(before) {
		t.Errorf("the host's sysctl is %s", after)
	}
	err = netns.Do(ns, func() error {
		ttl, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
		if strings.TrimSpace(string(ttl)) != "77" {
			t.Errorf("the pod's sysctl is %s", ttl)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for range 2 { // idempotent
		if err := p.unshare(); err != nil {
			t.Fatal(err)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), dir+"/p1") {
		t.Error("something is mounted still")
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the directory is there: %v", err)
	}
}
