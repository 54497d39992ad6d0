package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/pistis-run/pistis/internal/rtnl"
)

// Reconcile implements Network. It also removes links to the bridge that no pod of the ledger has.
func (b *Bridge) Reconcile(ctx context.Context, keep map[string]bool) error {
	if err := b.mark.checkName(b.opts.Name); err != nil {
		return fmt.Errorf("reconcile bridge network: %w", err)
	}
	b.mu.Lock()
	var gone []string
	names := map[string]bool{}
	if b.ledger != nil {
		for id, entry := range b.ledger.Pods {
			names[vethName(b.opts.Name, entry.Index)] = true
			if !keep[id] {
				gone = append(gone, id)
			}
		}
	}
	errs := []error{b.removeStrays(names)}
	b.mu.Unlock()
	for _, id := range gone {
		errs = append(errs, b.Teardown(ctx, Pod{ID: id}))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reconcile bridge network: %w", err)
	}
	return nil
}

// removeStrays removes links of the bridge that are not in keep. The caller holds mu.
func (b *Bridge) removeStrays(keep map[string]bool) error {
	links, err := rtnl.Dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, link := range links {
		if name := link.Attrs().Name; strings.HasPrefix(name, vethPrefix(b.opts.Name)) && !keep[name] {
			errs = append(errs, disconnect(name))
		}
	}
	return errors.Join(errs...)
}

// Wipe tears all pods down, removes everything that the bridge made on the host but for the forwarding switches, and
// closes it.
func (b *Bridge) Wipe(ctx context.Context) error {
	if err := b.mark.checkName(b.opts.Name); err != nil {
		return fmt.Errorf("wipe bridge network: %w", err)
	}
	errs := []error{b.Reconcile(ctx, nil)}
	b.mu.Lock()
	errs = append(errs, b.rules.Remove(), b.forward.Remove(), b.removeBridge())
	b.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("wipe bridge network: %w", err) // and can be tried again
	}
	path := ledgerPath(b.opts.StateDir, b.opts.Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("wipe bridge network: %w", err)
	}
	return b.Close()
}

// removeBridge leaves a device alone that has the name but is no bridge.
func (b *Bridge) removeBridge() error {
	link, err := findLink(b.opts.Name)
	if err != nil || link == nil || link.Type() != "bridge" {
		return err
	}
	return disconnect(b.opts.Name)
}
