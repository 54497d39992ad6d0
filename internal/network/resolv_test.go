package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pistis-run/pistis/internal/network/netns"
)

func TestReadPodDNS(t *testing.T) {
	gateway := netip.MustParseAddr("10.0.0.1")
	for _, c := range []struct {
		name, host, resolved string
		gateway              netip.Addr
		want                 string // "host", or servers; searches; options; resolver
	}{
		{"works in pods", "nameserver 192.0.2.1\nsearch a b\n", "nameserver 192.0.2.9\n", gateway, "host"},
		{"systemd-resolved", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n", "# comment\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch example.org\n", gateway,
			"[192.0.2.1 fe80::1%eth0]; [example.org]; []; invalid IP"},
		{"mixed", "nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "", gateway, "[192.0.2.1]; []; []; invalid IP"},
		{"local resolver", "nameserver ::1\nnameserver 127.0.0.5\nsearch a\noptions ndots:2\n", "nameserver 127.0.0.53\n", gateway, "[10.0.0.1]; [a]; [ndots:2]; 127.0.0.5"},
		{"no server", "search a\n", "", gateway, "[10.0.0.1]; [a]; []; 127.0.0.1"},
		{"no file", "", "", gateway, "[10.0.0.1]; []; []; 127.0.0.1"},
		{"no IPv4", "nameserver 127.0.0.1\n", "", netip.Addr{}, "host"},
	} {
		dir := t.TempDir()
		host, resolved := filepath.Join(dir, "host"), filepath.Join(dir, "resolved")
		for path, content := range map[string]string{host: c.host, resolved: c.resolved} {
			if content != "" {
				must(t, os.WriteFile(path, []byte(content), 0o644))
			}
		}
		dns, err := readPodDNS(host, resolved, c.gateway)
		must(t, err)
		got := "host"
		if dns.Own {
			got = fmt.Sprintf("%v; %v; %v; %v", dns.Conf.Servers, dns.Conf.Searches, dns.Conf.Options, dns.Resolver)
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// TestBridgeResolver has a resolver that listens on the host's loopback only.
func TestBridgeResolver(t *testing.T) {
	b := newBridge(t, bridgeOptions(t))
	pod, _ := setup(t, b, "pod")
	b.mu.Lock()
	b.dns = podDNS{Own: true, Resolver: netip.MustParseAddr("127.0.0.1")}
	err := b.rules.SetForwards(b.forwards())
	b.mu.Unlock()
	must(t, err)
	server, err := net.ListenPacket("udp4", "127.0.0.1:53")
	must(t, err)
	defer server.Close()
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	must(t, netns.Do(pod.NetNS, func() error {
		conn, err := net.Dial("udp4", netip.AddrPortFrom(b.gateways()[0].Addr(), 53).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte("query")); err != nil {
			return err
		}
		buf := make([]byte, 16)
		n, err := conn.Read(buf)
		if err == nil && string(buf[:n]) != "query" {
			err = fmt.Errorf("got %q", buf[:n])
		}
		return err
	}))
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nsearch a b\noptions ndots:5\n")
	f.Add("nameserver\nnameserver x\n;\n# c\ndomain d")
	f.Fuzz(func(t *testing.T, text string) {
		conf, err := parseResolvConf(strings.NewReader(text))
		if err == nil && len(conf.Servers) > strings.Count(text, "nameserver") {
			t.Error("more servers than lines")
		}
	})
}

func BenchmarkBridge(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED: needs root")
	}
	bridge, err := NewBridge(BridgeOptions{
		Name: "ptstbench", IPv4: netip.MustParsePrefix("10.98.0.0/16"), IPv6: netip.MustParsePrefix("fd98::/64"), StateDir: b.TempDir(),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = bridge.Wipe(b.Context()) }()
	dir := b.TempDir()
	for i := range b.N {
		id := fmt.Sprint("pod", i)
		path, err := netns.Create(dir, id)
		if err != nil {
			b.Fatal(err)
		}
		pod := Pod{ID: id, NetNS: path, Ports: []Port{{HostPort: 8088, ContainerPort: 80}}}
		if _, err := bridge.Setup(b.Context(), pod); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := bridge.Teardown(b.Context(), pod); err != nil {
			b.Fatal(err)
		}
		if err := netns.Remove(path); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
