package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// openNetwork opens CNI where it is configured, and the built-in bridge otherwise. Not both, but for handlers with a
// configuration of their own: a pod that came up on the bridge because the plugins were not there yet would stay there.
func openNetwork(cfg config.Network, handlers map[string]config.Handler, p paths, log *slog.Logger) (*network.Node, error) {
	options := network.Options{
		StateDir: p.network(), CNIBinDirs: cfg.CNIBinDirs,
		CNIConfDirs: network.ConfDirs{Default: cfg.CNIConfDir, Handlers: map[string]string{}},
	}
	for name, h := range handlers {
		if h.CNIConfDir != "" {
			options.CNIConfDirs.Handlers[name] = h.CNIConfDir
		}
	}
	if cfg.CNIConfDir != "" {
		return network.New(options)
	}
	options.Bridge = network.BridgeOptions{Name: cfg.Bridge.Name, Log: log}
	var err error
	if options.Bridge.IPv4, err = netip.ParsePrefix(cfg.Bridge.IPv4); err != nil {
		return nil, fmt.Errorf("daemon: network.bridge.ipv4: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if cfg.Bridge.IPv6 != "" {
		if options.Bridge.IPv6, err = netip.ParsePrefix(cfg.Bridge.IPv6); err != nil {
			return nil, fmt.Errorf("daemon: network.bridge.ipv6: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return network.New(options)
}

// tendNetworks frees what plugins keep for pods that are gone, and looks whether those of the pods that run are as they
// were set up: somebody may have changed the host while no daemon ran.
func (e *engine) tendNetworks(ctx context.Context, log *slog.Logger) {
	if err := e.network.CollectGarbage(ctx); err != nil && ctx.Err() == nil {
		log.Warn("garbage of pod networks", logfields.Error, err)
	}
	for _, s := range e.sandboxes.List(ctx) {
		if s.State != sandbox.Ready || s.NetNS == "" {
			continue
		}
		err := e.network.Check(ctx, network.Pod{ID: s.ID})
		if ctx.Err() != nil {
			return
		}
		if err != nil && !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err) {
			log.Warn("the network of a pod is not as it was set up; if the pod has no connection, start it anew", logfields.Sandbox, s.ID,
				logfields.Pod, s.Config.Namespace+"/"+s.Config.Name, logfields.Error, err)
		}
	}
}

// podCIDR answers the kubelet that says which networks the node's pods are to have. The built-in bridge has those of
// the configuration and does not renumber pods that run; with CNI they are the plugins' business.
func podCIDR(cfg config.Network) func(context.Context, string) error {
	return func(_ context.Context, cidr string) error {
		for one := range strings.SplitSeq(cidr, ",") {
			prefix, err := netip.ParsePrefix(strings.TrimSpace(one))
			if err != nil {
				return fmt.Errorf("%q is not a network: %w", one, errdefs.ErrInvalidArgument)
			}
			if cfg.CNIConfDir != "" {
				continue // CNI plugins take addresses from their own configuration
			}
			key, have := "network.bridge.ipv4", cfg.Bridge.IPv4
			if prefix.Addr().Is6() {
				key, have = "network.bridge.ipv6", cfg.Bridge.IPv6
			}
			if prefix.Masked().String() != have {
				return fmt.Errorf("the built-in bridge has %q; set %s = %q in pistisd's configuration and start it anew, or use CNI: %w",
					have, key, prefix.Masked(), errdefs.ErrFailedPrecondition)
			}
		}
		return nil
	}
}
