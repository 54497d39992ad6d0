package endpoint

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// network writes the CNI configuration that all daemons use alike and returns its directory.
func (e *Endpoint) network() (string, error) {
	dir := filepath.Join(e.Scope.State, "cni")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "10-peers.conflist"), fmt.Appendf(nil, `{
	"cniVersion": "1.0.0", "name": %q,
	"plugins": [
		{"type": "bridge", "bridge": %[1]q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.%d.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}
	]
}
`, e.Scope.Bridge, filepath.Join(e.Scope.Root, "ipam"), 90+e.number), 0o644)
}

// plugins is the directory of the CNI plugins.
func (o Options) plugins() string { return filepath.Join(o.Peers, "cni") }

// runtimes renders the tables of the OCI runtimes for containerd's plugin.
func (o Options) runtimes(e *Endpoint, plugin string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(o.Runtimes)) {
		fmt.Fprintf(&b, `[plugins.%[1]q.containerd.runtimes.%[2]s]
runtime_type = "io.containerd.runc.v2"
[plugins.%[1]q.containerd.runtimes.%[2]s.options]
BinaryName = %[3]q
Root = %[4]q
`, plugin, name, o.Runtimes[name], filepath.Join(e.Scope.State, name))
	}
	return b.String()
}

// write puts a configuration where argv finds it.
func (e *Endpoint) write(text string) (string, error) {
	path := filepath.Join(e.Scope.State, "config.toml")
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// containerd2 is containerd 2 as it is by default, but for its places.
func containerd2(e *Endpoint, o Options) ([]string, error) {
	conf, err := e.network()
	if err != nil {
		return nil, err
	}
	const cri = "io.containerd.cri.v1.runtime"
	path, err := e.write(fmt.Sprintf(`version = 3
root = %q
state = %q
[grpc]
address = %q
[plugins.'io.containerd.internal.v1.opt']
path = %q
[plugins.'io.containerd.nri.v1.nri']
socket_path = %q
plugin_path = %[4]q
plugin_config_path = %[4]q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %[6]q
[plugins.%[7]q]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.%[7]q.cni]
bin_dirs = [%[8]q]
conf_dir = %[9]q
%[10]s`, e.Scope.Root, e.Scope.State, e.Socket, filepath.Join(e.Scope.Root, "opt"), filepath.Join(e.Scope.State, "nri.sock"),
		o.Pause, cri, o.plugins(), conf, o.runtimes(e, cri)))
	return []string{filepath.Join(o.Peers, "containerd", "containerd"), "--config", path}, err
}

// containerd1 is Debian's containerd 1.6.
func containerd1(e *Endpoint, o Options) ([]string, error) {
	conf, err := e.network()
	if err != nil {
		return nil, err
	}
	const cri = "io.containerd.grpc.v1.cri"
	path, err := e.write(fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
address = %q
[plugins.'io.containerd.internal.v1.opt']
path = %q
[plugins.%[5]q]
sandbox_image = %[6]q
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.%[5]q.cni]
bin_dir = %[7]q
conf_dir = %[8]q
%[9]s`, e.Scope.Root, e.Scope.State, e.Socket, filepath.Join(e.Scope.Root, "opt"), cri, o.Pause, o.plugins(), conf, o.runtimes(e, cri)))
	return []string{filepath.Join(o.Peers, "containerd-1.6", "containerd"), "--config", path}, err
}

// pistisBridge is pistisd with its built-in bridge.
func pistisBridge(e *Endpoint, o Options) ([]string, error) { return pistisd(e, o, "") }

// pistisCNI is pistisd with the same CNI configuration as its peers.
func pistisCNI(e *Endpoint, o Options) ([]string, error) {
	conf, err := e.network()
	if err != nil {
		return nil, err
	}
	return pistisd(e, o, conf)
}

func pistisd(e *Endpoint, o Options, conf string) ([]string, error) {
	var handlers strings.Builder
	for _, name := range slices.Sorted(maps.Keys(o.Runtimes)) {
		fmt.Fprintf(&handlers, "[handlers.%s]\ntype = \"oci\"\npath = %q\n", name, o.Runtimes[name])
	}
	first := ""
	if o.Default != "" {
		first = fmt.Sprintf("default_handler = %q\n", o.Default)
	}
	path, err := e.write(first + fmt.Sprintf(`root = %q
state = %q
socket = %q
cgroup_parent = %q
cgroup_driver = "cgroupfs"
untrusted_handler = ""
[network]
cni_conf_dir = %q
cni_bin_dirs = [%q]
[network.bridge]
name = %q
ipv4 = "10.%d.0.0/16"
ipv6 = ""
%s%s`, e.Scope.Root, e.Scope.State, e.Socket, strings.TrimPrefix(e.Scope.Cgroup, "/"), conf, o.plugins(), e.Scope.Bridge, 90+e.number, handlers.String(), o.Extra))
	return []string{filepath.Join(o.Bin, "pistisd"), "--config", path}, err
}
