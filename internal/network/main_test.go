package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pistis-run/pistis/internal/network/netns"
)

// privateEnv tells the test binary that it is in a network namespace of its own.
const privateEnv = "PISTIS_TEST_PRIVATE_NETNS"

// TestMain runs the tests again in fresh network and mount namespaces, so that they cannot touch the machine's network
// and leave nothing on it.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(privateEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), privateEnv+"=1")
	// Outside, because building may have to fetch modules.
	if dir, err := buildPlugins(); err == nil {
		cmd.Env = append(cmd.Env, pluginsEnv+"="+dir)
	} else {
		fmt.Fprintln(os.Stderr, "build the CNI plugins:", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	runtime.LockOSThread() // whose end would be taken for the parent's
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "run the tests in their own network namespace:", err)
		os.Exit(1)
	}
}

// needsRoot skips a test that makes namespaces and interfaces.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test makes network namespaces and needs root")
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// newNetNS makes a namespace that goes with the test.
func newNetNS(t *testing.T, id string) string {
	t.Helper()
	path, err := netns.Create(filepath.Join(t.TempDir(), "ns"), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// outside makes a namespace that is linked to the test's own as another machine on its wire: 192.0.2.2 and
// 2001:db8::2, with routes to nowhere else.
func outside(t *testing.T) string {
	t.Helper()
	path := newNetNS(t, "outside")
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	wire := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire0", TxQLen: -1}, PeerName: "wire1", PeerTxQLen: -1, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	must(t, netlink.LinkAdd(wire))
	t.Cleanup(func() { must(t, netlink.LinkDel(wire)) })
	must(t, configureLink("wire0", "192.0.2.1/24", "2001:db8::1/64"))
	must(t, netns.DoFile(ns, func() error { return configureLink("wire1", "192.0.2.2/24", "2001:db8::2/64") }))
	return path
}

func configureLink(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(link, address(netip.MustParsePrefix(a))); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience bounds what must happen soon.
const patience = 10 * time.Second

// serve answers every TCP connection and UDP datagram at port in the namespace (empty: the test's own) with the
// address that it comes from.
func serve(t *testing.T, ns string, port int) {
	t.Helper()
	listen := func() error {
		tcp, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { tcp.Close() })
		udp, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { udp.Close() })
		go func() {
			for {
				conn, err := tcp.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, conn.RemoteAddr())
				conn.Close()
			}
		}()
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := udp.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = udp.WriteTo([]byte(from.String()), from)
			}
		}()
		return nil
	}
	if ns == "" {
		must(t, listen())
		return
	}
	must(t, netns.Do(ns, listen))
}

// ask connects from the namespace (empty: the test's own) and returns the address under which the server saw it.
func ask(ns, network, addr string) (netip.Addr, error) {
	return askWithin(ns, network, addr, patience)
}

func askWithin(ns, network, addr string, limit time.Duration) (ip netip.Addr, err error) {
	dial := func() error {
		conn, err := net.DialTimeout(network, addr, limit)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(limit))
		if network == "udp" {
			if _, err := conn.Write([]byte("hello")); err != nil {
				return err
			}
		}
		buf := make([]byte, 128)
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		seen, err := netip.ParseAddrPort(string(buf[:n]))
		ip = seen.Addr().Unmap()
		return err
	}
	if ns == "" {
		return ip, dial()
	}
	return ip, netns.Do(ns, dial)
}
