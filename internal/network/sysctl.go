package network

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/rtnl"
)

const (
	forwardIPv4 = "/proc/sys/net/ipv4/ip_forward"
	forwardIPv6 = "/proc/sys/net/ipv6/conf/all/forwarding"
)

// hasIPv6 says whether the kernel speaks IPv6 at all.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// setSysctl writes value at path unless it is there, and says whether it had to. It acts on the namespace of the
// calling thread.
func setSysctl(path, value string) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("read kernel setting: %w", err)
	}
	if strings.TrimSpace(string(old)) == value {
		return false, nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return false, fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return true, nil
}

// setInterfaceSysctls writes values of an interface; keys are as "ipv4/route_localnet".
func setInterfaceSysctls(name string, values map[string]string) error {
	for key, value := range values {
		family, key, _ := strings.Cut(key, "/")
		path := "/proc/sys/net/" + family + "/conf/" + name + "/" + key
		if _, err := setSysctl(path, value); err != nil {
			return err
		}
	}
	return nil
}

// switchForwarding lets the host forward packets, which is for the whole host, and says so when it was off.
func switchForwarding(log *slog.Logger, v4, v6 bool) error {
	if v4 {
		changed, err := setSysctl(forwardIPv4, "1")
		if err != nil {
			return err
		}
		if changed {
			log.Info("bridge network: switched on IPv4 forwarding on this host", logfields.Path, forwardIPv4)
		}
	}
	if !v6 {
		return nil
	}
	if on, err := os.ReadFile(forwardIPv6); err != nil || strings.TrimSpace(string(on)) == "1" {
		return err
	}
	if err := keepRouterAdvertisements(log); err != nil {
		return err
	}
	if _, err := setSysctl(forwardIPv6, "1"); err != nil {
		return err
	}
	log.Info("bridge network: switched on IPv6 forwarding on this host", logfields.Path, forwardIPv6)
	return nil
}

// keepRouterAdvertisements lets interfaces that have a route from a router advertisement go on listening to them: the
// kernel stops that with forwarding, and the host would lose its IPv6 routes some time later.
func keepRouterAdvertisements(log *slog.Logger) error {
	routes, err := rtnl.Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list IPv6 routes: %w", err)
	}
	for _, route := range routes {
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find interface %d: %w", route.LinkIndex, err)
		}
		path := "/proc/sys/net/ipv6/conf/" + link.Attrs().Name + "/accept_ra"
		if accept, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(accept)) != "1" {
			continue
		}
		if _, err := setSysctl(path, "2"); err != nil {
			return err
		}
		log.Info("bridge network: set an interface to accept router advertisements although the host forwards", logfields.Path, path)
	}
	return nil
}
