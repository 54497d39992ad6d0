package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/network"
)

// openNetwork opens CNI where it is configured, and the built-in bridge otherwise. Not both: a pod that came up on
// the bridge because the plugins were not there yet would stay there.
func openNetwork(cfg config.Network, p paths, log *slog.Logger) (*network.Node, error) {
	options := network.Options{StateDir: p.network()}
	if cfg.CNIConfDir != "" {
		options.CNIConfDir, options.CNIBinDirs = cfg.CNIConfDir, cfg.CNIBinDirs
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
