package cli

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cpuPeriod is the kernel's default bandwidth period in microseconds.
const cpuPeriod = 100_000

// resources are the limits of the pod and of its only container.
func (o runOptions) resources() (*runtime.LinuxContainerResources, error) {
	r := &runtime.LinuxContainerResources{}
	if o.memory != "" {
		q, err := resource.ParseQuantity(o.memory)
		if err != nil || q.Value() <= 0 {
			return nil, fmt.Errorf("memory %q: use a size, as 256Mi", o.memory)
		}
		r.MemoryLimitInBytes = q.Value()
	}
	if o.cpus != "" {
		cores, err := strconv.ParseFloat(o.cpus, 64)
		if err != nil || !(cores >= 0.01 && cores <= 4096) { // also not a number
			return nil, fmt.Errorf("cpus %q: use a number of cores of at least 0.01, as 0.5", o.cpus)
		}
		r.CpuPeriod = cpuPeriod
		r.CpuQuota = int64(cores * cpuPeriod)
		r.CpuShares = max(2, int64(cores*1024))
	}
	return r, nil
}

// parsePorts reads [host-ip:]host-port:port[/protocol].
func parsePorts(list []string) ([]*runtime.PortMapping, error) {
	var ports []*runtime.PortMapping
	for _, s := range list {
		rest, protocol, _ := strings.Cut(s, "/")
		i := strings.LastIndexByte(rest, ':')
		if i < 0 {
			return nil, fmt.Errorf("port %q: use [host-ip:]host-port:port, as 8080:80", s)
		}
		host, ip := rest[:i], ""
		if h, p, err := net.SplitHostPort(host); err == nil {
			ip, host = h, p
		}
		mapping := &runtime.PortMapping{HostIp: ip}
		if ip != "" && net.ParseIP(ip) == nil {
			return nil, fmt.Errorf("port %q: %q is no IP address", s, ip)
		}
		for _, p := range []struct {
			text string
			to   *int32
		}{{host, &mapping.HostPort}, {rest[i+1:], &mapping.ContainerPort}} {
			n, err := strconv.ParseUint(p.text, 10, 16)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("port %q: %q is no port number", s, p.text)
			}
			*p.to = int32(n)
		}
		switch strings.ToLower(protocol) {
		case "", "tcp":
			mapping.Protocol = runtime.Protocol_TCP
		case "udp":
			mapping.Protocol = runtime.Protocol_UDP
		case "sctp":
			mapping.Protocol = runtime.Protocol_SCTP
		default:
			return nil, fmt.Errorf("port %q: protocol %q is none of tcp, udp, sctp", s, protocol)
		}
		ports = append(ports, mapping)
	}
	return ports, nil
}
