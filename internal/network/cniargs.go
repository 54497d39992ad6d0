package network

import (
	"github.com/containernetworking/cni/libcni"
)

// portMapping is an element of the argument of the CNI capability portMappings.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// dnsArg is the argument of the CNI capability dns.
type dnsArg struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// runtimeConf is what plugins are told of a pod: the arguments that Kubernetes' plugins expect, and one argument per
// capability, which libcni passes only to plugins that have it.
func runtimeConf(pod Pod) (*libcni.RuntimeConf, error) {
	ports, err := checkPorts(pod.Ports)
	if err != nil {
		return nil, err
	}
	limits, err := podBandwidth(pod.Annotations)
	if err != nil {
		return nil, err
	}
	args := map[string]any{}
	if len(ports) > 0 {
		var mappings []portMapping
		for _, p := range ports {
			m := portMapping{HostPort: int(p.HostPort), ContainerPort: int(p.ContainerPort), Protocol: p.Protocol}
			if p.HostIP.IsValid() {
				m.HostIP = p.HostIP.String()
			}
			mappings = append(mappings, m)
		}
		args["portMappings"] = mappings
	}
	if limits != (bandwidth{}) {
		args["bandwidth"] = limits
	}
	if len(pod.DNSServers)+len(pod.DNSSearches)+len(pod.DNSOptions) > 0 {
		args["dns"] = dnsArg{pod.DNSServers, pod.DNSSearches, pod.DNSOptions}
	}
	if pod.CgroupParent != "" {
		args["cgroupPath"] = pod.CgroupParent
	}
	if len(pod.Annotations) > 0 {
		args["io.kubernetes.cri.pod-annotations"] = pod.Annotations
	}
	return &libcni.RuntimeConf{
		ContainerID: pod.ID,
		NetNS:       pod.NetNS,
		IfName:      interfaceName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
			{"K8S_POD_UID", pod.UID},
		},
		CapabilityArgs: args,
	}, nil
}
