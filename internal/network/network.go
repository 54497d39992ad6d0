package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
)

// interfaceName is what a pod's default interface is called.
const interfaceName = "eth0"

// Pod is what a network is set up for.
type Pod struct {
	ID, Namespace, Name, UID string
	// Handler is the pod's runtime handler; it may have a network of its own.
	Handler string
	// NetNS is the path of a network namespace that package netns made.
	NetNS       string
	Ports       []Port
	Annotations map[string]string
	// CgroupParent and DNS are passed to plugins as capabilities.
	CgroupParent                        string
	DNSServers, DNSSearches, DNSOptions []string
}

// Port is a host port that leads to the pod.
type Port struct {
	// Protocol is tcp, udp or sctp; empty is tcp.
	Protocol                string
	HostPort, ContainerPort uint16
	// HostIP restricts the port to one address of the host; empty and unspecified addresses stand for all of them.
	HostIP string
}

// Result of a set-up.
type Result struct {
	// IPs of the pod on its default interface, the primary first.
	IPs []netip.Addr
	// DNSServers that the network gives; empty: use the host's.
	DNSServers, DNSSearches, DNSOptions []string
}

// Network connects pods.
type network interface {
	// Setup gives the pod its interfaces. On an error nothing is left. It fails with ErrInvalidArgument for a bad pod,
	// ErrAlreadyExists where the pod is set up already or a host port is taken, ErrResourceExhausted without a free
	// address, and ErrUnavailable while the network is not ready.
	Setup(ctx context.Context, pod Pod) (Result, error)
	// Teardown undoes Setup; it may be called again, after a Setup that was interrupted, and when NetNS has gone.
	Teardown(ctx context.Context, pod Pod) error
	// Check says what is no longer as Setup left it.
	Check(ctx context.Context, pod Pod) error
	// Status is nil when a pod could be set up now, and otherwise says what is missing.
	Status() error
	// Reconcile tears down what exists for pods whose ID is not in keep.
	Reconcile(ctx context.Context, keep map[string]bool) error
	// Close releases the process's own resources. Pods keep their network.
	Close() error
}

// hostPort is a Port that has been checked.
type hostPort struct {
	Protocol      string     `json:"protocol"`
	HostIP        netip.Addr `json:"host_ip"` // the zero Addr: all of the host's
	HostPort      uint16     `json:"host_port"`
	ContainerPort uint16     `json:"container_port"`
}

func (p hostPort) String() string {
	if p.HostIP.IsValid() {
		return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
}

// overlaps says whether both ports want the same packets.
func (p hostPort) overlaps(q hostPort) bool {
	return p.Protocol == q.Protocol && p.HostPort == q.HostPort &&
		(!p.HostIP.IsValid() || !q.HostIP.IsValid() || p.HostIP == q.HostIP)
}

// checkPorts validates the ports of one pod.
func checkPorts(ports []Port) ([]hostPort, error) {
	var checked []hostPort
	for _, p := range ports {
		c, err := p.check()
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(checked, c.overlaps) {
			return nil, fmt.Errorf("host port %s is asked for twice by the same pod: %w", c, errdefs.ErrInvalidArgument)
		}
		checked = append(checked, c)
	}
	return checked, nil
}

func (p Port) check() (hostPort, error) {
	c := hostPort{Protocol: p.Protocol, HostPort: p.HostPort, ContainerPort: p.ContainerPort}
	if c.Protocol == "" {
		c.Protocol = "tcp"
	}
	if _, ok := protocolNumber(c.Protocol); !ok {
		return c, fmt.Errorf("host port %d: unknown protocol %q (known: tcp, udp, sctp): %w", p.HostPort, p.Protocol, errdefs.ErrInvalidArgument)
	}
	if p.HostPort == 0 || p.ContainerPort == 0 {
		return c, fmt.Errorf("host port %d to container port %d: ports are 1 to 65535 (leave a port without a host port out): %w", p.HostPort, p.ContainerPort, errdefs.ErrInvalidArgument)
	}
	if p.HostIP == "" {
		return c, nil
	}
	ip, err := netip.ParseAddr(p.HostIP)
	if err != nil || ip.Zone() != "" {
		return c, fmt.Errorf("host port %d: host IP %q is not an IP address: %w", p.HostPort, p.HostIP, errdefs.ErrInvalidArgument)
	}
	if ip = ip.Unmap(); ip.Is6() && ip.IsLoopback() {
		return c, fmt.Errorf("host port %d: the kernel lets nothing lead from %s to a pod; use 127.0.0.1 or another address of the host: %w", p.HostPort, ip, errdefs.ErrInvalidArgument)
	}
	if !ip.IsUnspecified() {
		c.HostIP = ip
	}
	return c, nil
}

func protocolNumber(name string) (byte, bool) {
	switch name {
	case "tcp":
		return 6, true
	case "udp":
		return 17, true
	case "sctp":
		return 132, true
	}
	return 0, false
}
