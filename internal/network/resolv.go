package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
)

// hostResolvConf is the host's resolver configuration, and resolvedConf the one in which systemd-resolved lists the
// servers that its local stub asks.
const (
	hostResolvConf = "/etc/resolv.conf"
	resolvedConf   = "/run/systemd/resolve/resolv.conf"
)

const dnsPort = 53

// maxResolvConf bounds what is read of a resolver configuration, in bytes.
const maxResolvConf = 64 << 10

// resolvConf is what a resolv.conf says.
type resolvConf struct {
	Servers           []netip.Addr
	Searches, Options []string
}

// parseResolvConf reads what it understands and skips the rest, as a resolver does. Of several search lines the last
// one counts, and "domain" is an old name for it.
func parseResolvConf(r io.Reader) (resolvConf, error) {
	var conf resolvConf
	lines := bufio.NewScanner(io.LimitReader(r, maxResolvConf))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if ip, err := netip.ParseAddr(fields[1]); err == nil {
				conf.Servers = append(conf.Servers, ip.Unmap())
			}
		case "search", "domain":
			conf.Searches = fields[1:]
		case "options":
			conf.Options = append(conf.Options, fields[1:]...)
		}
	}
	return conf, lines.Err()
}

// podDNS is how pods of the bridge resolve names. With a Resolver their queries go to the gateway, port 53, and from
// there to the Resolver, an IPv4 loopback address of the host.
type podDNS struct {
	// Own is false when the host's own configuration works in pods.
	Own      bool
	Conf     resolvConf
	Resolver netip.Addr
}

// readPodDNS looks at the host's configuration. A server on the host's loopback cannot be reached from a pod: the
// servers behind systemd-resolved take its place, or the other servers listed, or the gateway passes queries on.
func readPodDNS(host, resolved string, gateway netip.Addr) (podDNS, error) {
	conf, err := readResolvConf(host)
	if err != nil {
		return podDNS{}, err
	}
	usable := reachable(conf.Servers)
	if len(conf.Servers) > 0 && len(usable) == len(conf.Servers) {
		return podDNS{}, nil
	}
	if behind, err := readResolvConf(resolved); err == nil {
		if servers := reachable(behind.Servers); len(servers) > 0 {
			behind.Servers = servers
			return podDNS{Own: true, Conf: behind}, nil
		}
	}
	if len(usable) > 0 {
		conf.Servers = usable
		return podDNS{Own: true, Conf: conf}, nil
	}
	// Without any server line a resolver asks its own host.
	resolver := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, ip := range conf.Servers {
		if ip.Is4() {
			resolver = ip
			break
		}
	}
	if !gateway.IsValid() {
		return podDNS{}, nil // an IPv6 loopback address cannot be translated to
	}
	conf.Servers = []netip.Addr{gateway}
	return podDNS{Own: true, Conf: conf, Resolver: resolver}, nil
}

func readResolvConf(path string) (resolvConf, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return resolvConf{}, nil
	}
	if err != nil {
		return resolvConf{}, fmt.Errorf("read resolver configuration: %w", err)
	}
	defer f.Close()
	conf, err := parseResolvConf(f)
	if err != nil {
		return conf, fmt.Errorf("read resolver configuration: %s: %w", path, err)
	}
	return conf, nil
}

func reachable(servers []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, ip := range servers {
		if !ip.IsLoopback() && !ip.IsUnspecified() {
			out = append(out, ip)
		}
	}
	return out
}
