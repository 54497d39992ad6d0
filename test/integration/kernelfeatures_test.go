package integration

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	nfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestModulesOnDemand: what pods expect of a kernel is loaded when it is asked for, and nothing else.
func TestModulesOnDemand(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("modules", func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.Privileged = true
	})
	c := shell("main", forever)
	c.Linux.SecurityContext.Privileged = true
	id := d.launch(pod, config, c)
	loaded := func() []string { return strings.Fields(d.execSync(id, "sh", "-c", "cut -d' ' -f1 /proc/modules")) }
	expect(t, "where random numbers come from", d.execSync(id, "cat", "/sys/class/misc/hw_random/rng_current"), "virtio_rng.0\n")
	before := loaded()
	netfilter := guestSide(t, "netfilter", "TestNetfilterInGuest", "/tmp")
	netfilter.Linux.SecurityContext.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	if out := d.run(pod, config, netfilter); !strings.Contains(out, "--- PASS: TestNetfilterInGuest") {
		t.Errorf("netfilter: %s", out)
	}
	d.execSync(id, "sh", "-c", script("ip link add name br0 type bridge", "mkdir -p /dev/net /tmp/n",
		"[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200", "(: <> /dev/net/tun)",
		"mount -t cifs -o ip=127.0.0.1 //127.0.0.1/none /tmp/n 2>/dev/null || true",
		"mount -t no-such /tmp/n /tmp/n 2>/dev/null || true"))
	mountsNFS(t, d, id)
	after := strings.Join(loaded(), " ") + " "
	for _, name := range []string{"bridge", "tun", "nfs", "cifs", "ip_tables", "ip6_tables", "iptable_nat", "nf_tables", "nft_masq", "wireguard"} {
		if !strings.Contains(" "+after, " "+name+" ") {
			t.Errorf("%s is not loaded; before: %s; after: %s", name, before, after)
		}
	}
	if bytes.Contains([]byte(after), []byte("af_alg")) {
		t.Error("what is not allowed was loaded")
	}
	d.stopAndRemove(pod)
}

// mountsNFS has a container mount a directory that this host serves, and read and write in it.
func mountsNFS(t *testing.T, d *daemon, container string) {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := volume(t)
	write(t, filepath.Join(dir, "file"), "from the server\n")
	served := make(chan error, 1)
	go func() {
		served <- nfs.Serve(l, helpers.NewCachingHandler(helpers.NewNullAuthHandler(osfs.New(dir)), 1024))
	}()
	defer func() {
		l.Close()
		<-served
	}()
	port := l.Addr().(*net.TCPAddr).Port
	expect(t, "what is read over NFS", d.execSync(container, "sh", "-c", script(
		"server=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')",
		fmt.Sprintf("mount -t nfs -o vers=3,nolock,proto=tcp,port=%[1]d,mountproto=tcp,mountport=%[1]d,addr=$server $server:/ /tmp/n", port),
		"cat /tmp/n/file", "echo guest > /tmp/n/from-guest", "umount /tmp/n")), "from the server\n")
	expect(t, "on the server", read(t, filepath.Join(dir, "from-guest")), "guest\n")
}

// TestNetfilterInGuest does with the guest's kernel what iptables and nft do.
func TestNetfilterInGuest(t *testing.T) {
	if os.Getenv(guestDir) == "" {
		t.Skip("it runs inside a guest, started by TestModulesOnDemand")
	}
	// The tables of iptables are there for who asks, as `iptables -t nat -L` does.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const soGetInfo = 64
	info := make([]byte, 84)
	copy(info, "nat")
	size := uint32(len(info))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, soGetInfo, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		t.Errorf("iptables: %v", errno)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "pod"})
	chain := conn.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Masq{}}})
	if err := conn.Flush(); err != nil {
		t.Errorf("nftables: %v", err)
	}
	wireguard := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "wg9"}, LinkType: "wireguard"}
	if err := errors.Join(netlink.LinkAdd(wireguard), netlink.LinkDel(wireguard)); err != nil {
		t.Errorf("wireguard: %v", err)
	}
}
