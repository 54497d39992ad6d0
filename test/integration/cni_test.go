package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plugin is a CNI plugin that gives each pod a device of its own with the address of its configuration. It fails CHECK
// and STATUS while there is a file of that name beside it, and keeps what GC asks for in another one.
const plugin = `#!/bin/sh
dir=$(dirname "$0") conf=$(cat)
address=$(echo "$conf" | sed -n 's/.*"address": *"\([^"]*\)".*/\1/p')
[ -n "$address" ] || address=192.0.2.1
fail() { echo '{"cniVersion": "1.1.0", "code": 50, "msg": "'"$CNI_COMMAND"' says no"}'; exit 1; }
case $CNI_COMMAND in
ADD) nsenter --net="$CNI_NETNS" sh -ec "ip link add eth0 type bridge; ip addr add $address/24 dev eth0; ip link set eth0 up" >&2 || fail
	echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}], "ips": [{"address": "'$address'/24", "interface": 0}]}' ;;
CHECK | STATUS) [ ! -e "$dir/$CNI_COMMAND" ] || fail ;;
GC) echo "$conf" >"$dir/GC" ;;
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}' ;;
esac
`

// TestCNI: a handler with a runtime and a network of its own, beside others with the built-in bridge; its configuration changes, its
// plugins say that they are not ready, and a daemon that comes back looks after what is there.
func TestCNI(t *testing.T) {
	needs(t)
	bin, conf := t.TempDir(), t.TempDir()
	d := startPrepared(t, fmt.Sprintf("[handlers.runc]\ntype = \"oci\"\n[handlers.mine]\ntype = \"oci\"\npath = %q\ncni_conf_dir = %q\n[handlers.vm]\ntype = \"vm\"\n", runtimeByPath(t), conf), func(d *daemon) {
		d.configure(func(s string) string {
			return strings.Replace(s, "cni_conf_dir = \"\"\n", fmt.Sprintf("cni_conf_dir = \"\"\ncni_bin_dirs = [%q]\n", bin), 1)
		})
	})
	if reason := notReady(d, "runc"); reason != "" {
		t.Skipf("SKIPPED, not tested: handler runc: %s", reason)
	}
	d.handler = "mine"
	_, err := d.tryPod("early")
	refused(t, "a pod without a configuration", err, codes.Unavailable)
	if reason := notReady(d, "mine"); !strings.Contains(reason, conf) {
		t.Errorf("the handler is not ready because of %q", reason)
	}
	if err := os.WriteFile(filepath.Join(bin, "device"), []byte(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	configure := func(address string) {
		text := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "devices", "plugins": [{"type": "device", "address": %q}]}`, address)
		writeFile(t, filepath.Join(conf, "10-devices.conflist"), []byte(text))
	}
	configure("192.0.2.7")
	expect(t, "why the handler is not ready", notReady(d, "mine"), "")
	pod, _ := d.runPod("first", nil)
	expect(t, "address", d.ip(pod), "192.0.2.7")
	d.pull(testImage)
	expect(t, "a container of a runtime by path", d.run(pod, d.podConfig("first"), shell("c", "ip -4 -o addr show eth0 | grep -c 192.0.2.7")), "1\n")
	configure("192.0.2.8") // counts at once
	second, _ := d.runPod("second", nil)
	expect(t, "address", d.ip(second), "192.0.2.8")
	d.handler = "runc"
	bridged, _ := d.runPod("bridged", nil)
	if ip := d.ip(bridged); strings.HasPrefix(ip, "192.0.2.") {
		t.Errorf("a pod of another handler has the address %s", ip)
	}

	writeFile(t, filepath.Join(bin, "STATUS"), nil)
	if reason := notReady(d, "mine"); !strings.Contains(reason, "STATUS says no") {
		t.Errorf("the handler is not ready because of %q", reason)
	}
	writeFile(t, filepath.Join(bin, "CHECK"), nil)
	d.kill()
	d.start()
	eventually(t, "what CHECK says", func() bool { return strings.Count(d.logs(), "CHECK says no") == 2 })
	asked, err := os.ReadFile(filepath.Join(bin, "GC"))
	if err != nil || !strings.Contains(string(asked), pod) || !strings.Contains(string(asked), second) {
		t.Errorf("garbage collection was asked for with %s, %v", asked, err)
	}
	expect(t, "state of a pod whose network was changed", d.sandboxState(pod), runtime.PodSandboxState_SANDBOX_READY)
	for _, id := range []string{pod, second, bridged} {
		d.stopAndRemove(id)
	}
	d.nothing("after CNI")
}

// runtimeByPath is an OCI runtime that nothing but its path leads to: a copy of runc under another name.
func runtimeByPath(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(os.Getenv("PISTIS_BIN"), "guest", "runc"))
	if err != nil {
		t.Skipf("SKIPPED, not tested: no runc beside the commands: %v", err)
	}
	path := filepath.Join(t.TempDir(), "of-the-house")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
