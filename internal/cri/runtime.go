package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	goruntime "runtime"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimeName is what Version calls us.
const runtimeName = "pistis"

// kubeAPIVersion is the version of the kubelet's runtime API, which has not moved since it was named.
const kubeAPIVersion = "0.1.0"

var semver = regexp.MustCompile(`^\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?$`)

// runtimeCalls are the calls about the runtime itself.
type runtimeCalls struct {
	version        string
	handlers       Handlers
	networkReady   func() error
	setPodCIDR     func(ctx context.Context, cidr string) error
	systemdCgroups bool
	info           map[string]any
}

// Version says who we are.
func (c *runtimeCalls) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{
		Version: kubeAPIVersion, RuntimeName: runtimeName,
		RuntimeVersion: semanticVersion(c.version), RuntimeApiVersion: "v1",
	}, nil
}

// semanticVersion makes a version of git describe into one that clients can parse.
func semanticVersion(v string) string {
	v = strings.TrimPrefix(v, "v")
	if semver.MatchString(v) {
		return v
	}
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '-', r == '.':
			return r
		}
		return '-'
	}, v)
	if clean == "" {
		return "0.0.0"
	}
	return "0.0.0+" + clean
}

// Status says whether pods can be run and what the handlers can do.
func (c *runtimeCalls) Status(_ context.Context, req *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	resp := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
			condition(runtime.RuntimeReady, "HandlerNotReady", c.handlers.ready(c.handlers.Default)),
			condition(runtime.NetworkReady, "NetworkNotReady", c.networkReady()),
		}},
		Features: &runtime.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
		// The empty name stands for the default handler.
		RuntimeHandlers: []*runtime.RuntimeHandler{{Features: c.handlers.features(c.handlers.Default)}},
	}
	for _, name := range c.handlers.names() {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers,
			&runtime.RuntimeHandler{Name: name, Features: c.handlers.features(name)})
		resp.Status.Conditions = append(resp.Status.Conditions,
			condition("HandlerReady/"+name, "HandlerNotReady", c.handlers.ready(name)))
	}
	if !req.Verbose {
		return resp, nil
	}
	resp.Info = map[string]string{}
	for key, value := range c.info {
		if err := addInfo(resp.Info, key, value); err != nil {
			return nil, err
		}
	}
	return resp, addInfo(resp.Info, "golang", goruntime.Version())
}

// addInfo sets a key of a verbose answer, in which all values are JSON.
func addInfo(info map[string]string, key string, value any) error {
	encoded, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("verbose information %q: %w: %w", key, err, errdefs.ErrInternal)
	}
	info[key] = string(encoded)
	return nil
}

func condition(name, reason string, err error) *runtime.RuntimeCondition {
	c := &runtime.RuntimeCondition{Type: name, Status: err == nil}
	if err != nil {
		c.Reason, c.Message = reason, err.Error()
	}
	return c
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (c *runtimeCalls) RuntimeConfig(context.Context, *runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if c.systemdCgroups {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the node's pod networks, or refuses them where the network is another one.
func (c *runtimeCalls) UpdateRuntimeConfig(ctx context.Context, req *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr == "" {
		return &runtime.UpdateRuntimeConfigResponse{}, nil
	}
	if err := c.setPodCIDR(ctx, cidr); err != nil {
		return nil, fmt.Errorf("pod CIDR %q: %w", cidr, err)
	}
	return &runtime.UpdateRuntimeConfigResponse{}, nil
}
