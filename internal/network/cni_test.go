package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// pluginsEnv tells the tests where the CNI plugins are.
const pluginsEnv = "PISTIS_TEST_CNI_PLUGINS"

const pluginsModule = "github.com/containernetworking/plugins"

// buildPlugins builds the reference plugins from their module, once per version, and returns their directory.
func buildPlugins() (string, error) {
	version, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", pluginsModule).Output()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "pistis-test", "cni-"+strings.TrimSpace(string(version)))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "build")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	args := []string{"build", "-o", tmp + "/"}
	for _, p := range []string{"main/bridge", "meta/portmap", "meta/bandwidth", "ipam/host-local"} {
		args = append(args, pluginsModule+"/plugins/"+p)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// fixture is a CNI network with directories of its own.
type fixture struct {
	*CNI
	conf, bin, state string
}

func newCNI(t *testing.T) fixture {
	t.Helper()
	needsRoot(t)
	bin := os.Getenv(pluginsEnv)
	if bin == "" {
		t.Fatal("the CNI plugins were not built, see above")
	}
	dir := t.TempDir()
	f := fixture{conf: filepath.Join(dir, "net.d"), bin: bin, state: filepath.Join(dir, "state")}
	must(t, os.Mkdir(f.conf, 0o755))
	var err error
	f.CNI, err = NewCNI(ConfDirs{Default: f.conf}, []string{filepath.Join(dir, "bin"), bin}, f.state)
	must(t, err)
	return f
}

// plugin makes a plugin of the test's own.
func (f fixture) plugin(t *testing.T, name, script string) {
	t.Helper()
	path := filepath.Join(filepath.Dir(f.conf), "bin", name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
}

func (f fixture) write(t *testing.T, name, content string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(f.conf, name), []byte(content), 0o644))
}

// bridgePlugin is a configuration of the bridge plugin with a bridge of the test's own.
func (f fixture) bridgePlugin(t *testing.T, extra string) string {
	t.Helper()
	opts := bridgeOptions(t)
	t.Cleanup(func() { must(t, disconnect(opts.Name)) })
	return fmt.Sprintf(`{%s "type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}], [{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
		"dns": {"nameservers": ["192.0.2.53"], "search": ["example.org"]}}`,
		extra, opts.Name, filepath.Join(f.state, "ipam"), opts.IPv4, opts.IPv6)
}

func (f fixture) list(t *testing.T, version string) string {
	t.Helper()
	return fmt.Sprintf(`{"cniVersion": %q, "name": "testnet", "plugins": [%s,
		{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
		{"type": "bandwidth", "capabilities": {"bandwidth": true}}]}`, version, f.bridgePlugin(t, ""))
}

func TestCNIWithRealPlugins(t *testing.T) {
	f := newCNI(t)
	// The bridge's address is of use at once, not after a second of looking for others that have it.
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0))
	if err := f.Status(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), f.conf) {
		t.Errorf("status without a configuration: %v", err)
	}
	f.write(t, "10-test.conflist", f.list(t, "1.1.0"))
	must(t, f.Status())
	pod := Pod{
		ID: "pod", Namespace: "default", Name: "pod", UID: "1234", NetNS: newNetNS(t, "pod"), CgroupParent: "/kubepods",
		Ports:       []Port{{HostPort: 8090, ContainerPort: 80}},
		Annotations: map[string]string{ingressBandwidth: "10M", egressBandwidth: "20M"},
	}
	result, err := f.Setup(t.Context(), pod)
	must(t, err)
	if len(result.IPs) != 2 || !result.IPs[0].Is4() || !result.IPs[1].Is6() {
		t.Errorf("addresses: %v", result.IPs)
	}
	if fmt.Sprint(result.DNSServers, result.DNSSearches) != "[192.0.2.53] [example.org]" {
		t.Errorf("DNS: %+v", result)
	}
	serve(t, pod.NetNS, 80)
	if _, err := ask("", "tcp", "127.0.0.1:8090"); err != nil {
		t.Errorf("host port: %v", err)
	}
	gateway := netip.AddrPortFrom(bridgeOptions(t).IPv6.Addr().Next(), 8090)
	if _, err := ask("", "tcp", gateway.String()); err != nil {
		t.Errorf("host port over IPv6: %v", err)
	}
	if tbf := shaped(t); tbf != 2 {
		t.Errorf("%d token bucket filters, want one per direction", tbf)
	}
	must(t, f.Check(t.Context(), pod))
	if _, err := f.Setup(t.Context(), pod); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the same pod twice: %v", err)
	}
	other := pod
	other.ID, other.NetNS = "other", newNetNS(t, "other")
	if _, err := f.Setup(t.Context(), other); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "taken by pod pod") {
		t.Errorf("the same host port twice: %v", err)
	}
	must(t, f.CollectGarbage(t.Context()))
	must(t, f.Check(t.Context(), pod)) // its addresses were no garbage
	// The configuration changes: the pod goes as it came.
	must(t, os.Remove(filepath.Join(f.conf, "10-test.conflist")))
	must(t, f.Teardown(t.Context(), pod))
	must(t, f.Teardown(t.Context(), pod))
	if _, err := ask("", "tcp", "127.0.0.1:8090"); err == nil {
		t.Error("the host port is still there")
	}
	if err := f.Check(t.Context(), pod); !errdefs.IsNotFound(err) {
		t.Errorf("check of a pod that is gone: %v", err)
	}
	f.nothingLeft(t)
}

// shaped counts token bucket filters on the test's interfaces.
func shaped(t *testing.T) (n int) {
	t.Helper()
	links, err := rtnl.Dump(netlink.LinkList)
	must(t, err)
	for _, l := range links {
		qdiscs, err := rtnl.Dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
		must(t, err)
		for _, q := range qdiscs {
			if q.Type() == "tbf" {
				n++
			}
		}
	}
	return n
}

// nothingLeft looks at what libcni, the plugins and we keep of pods.
func (f fixture) nothingLeft(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"pods/*", "results/*", "ipam/testnet/1*", "ipam/testnet/f*"} {
		if left, _ := filepath.Glob(filepath.Join(f.state, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	links, err := rtnl.Dump(netlink.LinkList)
	must(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "veth") {
			t.Errorf("left: interface %s", l.Attrs().Name)
		}
	}
}

// TestCNIGarbage: what plugins and libcni keep for pods of which nobody knows is freed, once the version knows how.
func TestCNIGarbage(t *testing.T) {
	for _, version := range []string{"1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			f := newCNI(t)
			must(t, f.CollectGarbage(t.Context())) // without a configuration there is none
			f.write(t, "10-test.conflist", f.list(t, version))
			asked := filepath.Join(t.TempDir(), "asked")
			f.plugin(t, "collector", `[ "$CNI_COMMAND" = GC ] && cat >`+asked+`
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion": "`+version+`"}'
exit 0`)
			f.write(t, "10-test.conflist", fmt.Sprintf(`{"cniVersion": %q, "name": "testnet", "plugins": [%s, {"type": "collector"}]}`, version, f.bridgePlugin(t, "")))
			setup(t, f, "lost")
			kept, _ := setup(t, f, "kept")
			must(t, f.records.remove("lost"))
			must(t, f.CollectGarbage(t.Context()))
			if results, _ := filepath.Glob(filepath.Join(f.state, "results", "*-lost-*")); len(results) > 0 {
				t.Errorf("libcni keeps %v", results)
			}
			raw, err := os.ReadFile(asked)
			if version == "1.0.0" {
				if err == nil {
					t.Errorf("plugins were asked what they do not know: %s", raw)
				}
			} else if err != nil || !strings.Contains(string(raw), `"cni.dev/valid-attachments":[{"containerID":"kept","ifname":"eth0"}]`) {
				t.Errorf("plugins were asked: %s, %v", raw, err)
			}
			must(t, f.Teardown(t.Context(), kept))
			f.nothingLeft(t)
		})
	}
}

// TestCNIGarbageIsBounded: a plugin that does not come back does not keep pods waiting for ever.
func TestCNIGarbageIsBounded(t *testing.T) {
	dir := t.TempDir()
	f := fixture{conf: filepath.Join(dir, "net.d"), state: filepath.Join(dir, "state")}
	must(t, os.Mkdir(f.conf, 0o755))
	var err error
	f.CNI, err = NewCNI(ConfDirs{Default: f.conf}, []string{filepath.Join(dir, "bin")}, f.state)
	must(t, err)
	f.plugin(t, "stuck", "exec sleep 1000")
	f.write(t, "10-test.conflist", `{"cniVersion": "1.1.0", "name": "testnet", "plugins": [{"type": "stuck"}]}`)
	f.patience = 100 * time.Millisecond
	if err := f.CollectGarbage(t.Context()); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("got %v", err)
	}
}

// TestCNIOfHandlers: pods of a handler with a directory of its own are CNI's, from the start; the others have the bridge.
func TestCNIOfHandlers(t *testing.T) {
	f := newCNI(t)
	opts := bridgeOptions(t)
	opts.Name, opts.IPv4, opts.IPv6 = "ptsthandler", netip.MustParsePrefix("10.98.0.0/24"), netip.Prefix{}
	n, err := New(Options{CNIConfDirs: ConfDirs{Handlers: map[string]string{"mine": f.conf}}, CNIBinDirs: []string{f.bin}, StateDir: f.state, Bridge: opts})
	must(t, err)
	defer func() { must(t, n.Wipe(t.Context())) }()
	must(t, n.Status())
	if err := n.StatusOf("mine"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), f.conf) {
		t.Errorf("status of the handler without a configuration: %v", err)
	}
	must(t, n.StatusOf("other"))
	pod := Pod{ID: "mine", Handler: "mine", NetNS: newNetNS(t, "mine")}
	if _, err := n.Setup(t.Context(), pod); !errdefs.IsUnavailable(err) {
		t.Errorf("set-up without a configuration: %v", err)
	}
	f.write(t, "10-test.conflist", f.list(t, "1.1.0"))
	must(t, n.StatusOf("mine"))
	result, err := n.Setup(t.Context(), pod)
	must(t, err)
	if opts.IPv4.Contains(result.IPs[0]) {
		t.Errorf("address %s is of the bridge", result.IPs[0])
	}
	other, result := setup(t, n, "other")
	if !opts.IPv4.Contains(result.IPs[0]) {
		t.Errorf("address %s is not of the bridge", result.IPs[0])
	}
	must(t, n.CollectGarbage(t.Context()))
	for _, p := range []Pod{pod, other} {
		must(t, n.Check(t.Context(), p))
		must(t, n.Teardown(t.Context(), p))
	}
}

func TestCNITeardownAfterCrash(t *testing.T) {
	f := newCNI(t)
	f.write(t, "10-test.conflist", f.list(t, "1.0.0"))
	pod, _ := setup(t, f, "gone")
	kept, _ := setup(t, f, "kept")
	must(t, netns.Remove(pod.NetNS))
	// A new process knows of both.
	again, err := NewCNI(ConfDirs{Default: f.conf}, []string{f.bin}, f.state)
	must(t, err)
	must(t, again.Reconcile(t.Context(), map[string]bool{"kept": true}))
	must(t, again.Check(t.Context(), kept))
	must(t, again.Reconcile(t.Context(), nil))
	f.nothingLeft(t)
}

func TestCNISetupFailsHalfway(t *testing.T) {
	f := newCNI(t)
	f.write(t, "10-test.conflist", fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "testnet", "plugins": [%s, {"type": "failing"}]}`, f.bridgePlugin(t, "")))
	if err := f.Status(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "plugin failing is not in") {
		t.Errorf("status without a plugin: %v", err)
	}
	f.plugin(t, "failing", `[ "$CNI_COMMAND" = DEL ] && exit 0
echo '{"cniVersion": "1.0.0", "code": 11, "msg": "not now"}'
exit 1`)
	pod := Pod{ID: "pod", NetNS: newNetNS(t, "pod")}
	if _, err := f.Setup(t.Context(), pod); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "not now") {
		t.Errorf("set-up with a failing plugin: %v", err)
	}
	f.nothingLeft(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Setup(ctx, pod); !errors.Is(err, context.Canceled) {
		t.Errorf("set-up with a canceled context: %v", err)
	}
	f.nothingLeft(t)
}

func TestCNIConfigurationFiles(t *testing.T) {
	f := newCNI(t)
	f.write(t, "00-notes.txt", "no configuration")
	if f.Configured("") {
		t.Error("a text file counts as a configuration")
	}
	f.write(t, "10-broken.conflist", "{")
	if err := f.Status(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "10-broken.conflist") {
		t.Errorf("status with a broken configuration: %v", err)
	}
	if !f.Configured("") {
		t.Error("a broken configuration is one all the same")
	}
	f.write(t, "20-future.conflist", `{"cniVersion": "9.0.0", "name": "future", "plugins": [{"type": "bridge"}]}`)
	f.write(t, "30-single.conf", f.bridgePlugin(t, `"cniVersion": "0.4.0", "name": "testnet",`))
	must(t, f.Status())
	pod, result := setup(t, f, "pod")
	if len(result.IPs) != 2 {
		t.Errorf("addresses: %v", result.IPs)
	}
	must(t, f.Check(t.Context(), pod))
	must(t, f.Teardown(t.Context(), pod))
	f.nothingLeft(t)
}

func TestNodeChooses(t *testing.T) {
	f := newCNI(t)
	opts := bridgeOptions(t)
	opts.Name, opts.IPv4 = "ptstnode", netip.MustParsePrefix("10.99.0.0/24")
	n, err := New(Options{CNIConfDirs: ConfDirs{Default: f.conf}, CNIBinDirs: []string{f.bin}, StateDir: t.TempDir(), Bridge: opts})
	must(t, err)
	defer func() { must(t, n.Wipe(t.Context())) }()
	must(t, n.Status())
	early, result := setup(t, n, "early")
	if !opts.IPv4.Contains(result.IPs[0]) {
		t.Errorf("address %s is not of the bridge", result.IPs[0])
	}
	f.write(t, "10-test.conflist", f.list(t, "1.1.0"))
	late, result := setup(t, n, "late")
	if opts.IPv4.Contains(result.IPs[0]) {
		t.Errorf("address %s is of the bridge", result.IPs[0])
	}
	if _, err := n.Setup(t.Context(), early); !errdefs.IsAlreadyExists(err) {
		t.Errorf("set-up of a pod of the bridge by CNI: %v", err)
	}
	for _, pod := range []Pod{early, late} {
		must(t, n.Check(t.Context(), pod))
		must(t, n.Teardown(t.Context(), pod))
		if err := n.Check(t.Context(), pod); !errdefs.IsNotFound(err) {
			t.Errorf("check of a pod that is gone: %v", err)
		}
	}
}

func TestRuntimeConf(t *testing.T) {
	pod := Pod{
		ID: "id", Namespace: "ns", Name: "name", UID: "uid", NetNS: "/run/netns/x", CgroupParent: "/parent",
		Ports:      []Port{{HostPort: 80, ContainerPort: 8080, HostIP: "0.0.0.0"}, {Protocol: "udp", HostPort: 53, ContainerPort: 53, HostIP: "2001:db8::1"}},
		DNSServers: []string{"192.0.2.53"}, Annotations: map[string]string{egressBandwidth: "1500k"},
	}
	conf, err := runtimeConf(pod)
	must(t, err)
	got, err := json.Marshal(conf.CapabilityArgs)
	must(t, err)
	const want = `{"bandwidth":{"egressRate":1500000,"egressBurst":4294967295},"cgroupPath":"/parent","dns":{"servers":["192.0.2.53"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"1500k"},` +
		`"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"},{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"2001:db8::1"}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := fmt.Sprint(conf.Args); got != "[[IgnoreUnknown 1] [K8S_POD_NAMESPACE ns] [K8S_POD_NAME name] [K8S_POD_INFRA_CONTAINER_ID id] [K8S_POD_UID uid]]" {
		t.Error(got)
	}
	for _, bad := range []string{"", "fast", "-1M", "10", "2P"} {
		pod.Annotations = map[string]string{ingressBandwidth: bad}
		if _, err := runtimeConf(pod); !errdefs.IsInvalidArgument(err) {
			t.Errorf("bandwidth %q: %v", bad, err)
		}
	}
}

func TestNetNS(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	path, err := netns.Create(dir, "a")
	must(t, err)
	if _, err := netns.Create(dir, "a"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice: %v", err)
	}
	must(t, netns.Do(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil && lo.Attrs().RawFlags&1 == 0 {
			err = errors.New("the loopback interface is down")
		}
		return err
	}))
	if ids, err := netns.List(dir); err != nil || len(ids) != 1 {
		t.Errorf("list: %v, %v", ids, err)
	}
	must(t, netns.Remove(path))
	must(t, netns.Remove(path))
	if err := netns.Do(path, func() error { return nil }); !errdefs.IsNotFound(err) {
		t.Errorf("enter a namespace that is gone: %v", err)
	}
	for _, id := range []string{"", ".", "..", "a/b"} {
		if _, err := netns.Create(dir, id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ID %q: %v", id, err)
		}
	}
}

// TestNetNSBesideCopies: a bind mount of a directory above the pins, made before or after them, holds none of them.
func TestNetNSBesideCopies(t *testing.T) {
	needsRoot(t)
	must(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")) // as on hosts without systemd
	above := t.TempDir()
	dir := filepath.Join(above, "ns")
	var copies []string
	copyOf := func() string {
		at := t.TempDir()
		must(t, unix.Mount(above, at, "", unix.MS_BIND|unix.MS_REC, ""))
		copies = append(copies, at)
		return at
	}
	copyOf()
	must(t, netns.OpenDir(dir))
	must(t, netns.OpenDir(dir))
	copyOf()
	path, err := netns.Create(dir, "a")
	must(t, err)
	last := copyOf()
	if err := netns.Do(filepath.Join(last, "ns", "a"), func() error { return nil }); err != nil {
		t.Fatalf("the copy has no pin: %v", err)
	}
	must(t, netns.Remove(path))
	// The directory itself cannot go before its copies.
	if err := netns.RemoveDir(dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove the directory: %v", err)
	}
	for _, at := range copies {
		must(t, unix.Unmount(at, unix.MNT_DETACH))
	}
	must(t, netns.RemoveDir(dir))
	must(t, netns.RemoveDir(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}
