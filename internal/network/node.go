package network

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Options configure the network of a node.
type Options struct {
	// CNIConfDirs and CNIBinDirs are where CNI configurations and plugins are. Without a directory there is only the
	// bridge.
	CNIConfDirs ConfDirs
	CNIBinDirs  []string
	// StateDir is the directory of both networks' state; Bridge.StateDir is not used.
	StateDir string
	// Bridge is what pods get while there is no CNI configuration. With an empty name they are refused then.
	Bridge BridgeOptions
}

// Node is the network of a node: CNI as soon as its directory holds a configuration, the built-in bridge until then.
// A pod stays with what it was set up with.
type Node struct {
	cni    *CNI    // nil: none
	bridge *Bridge // nil: none
}

// New opens the networks that the options speak of. The caller must Close the node.
func New(opts Options) (*Node, error) {
	n := &Node{}
	var err error
	if len(opts.CNIConfDirs.all()) > 0 {
		if n.cni, err = NewCNI(opts.CNIConfDirs, opts.CNIBinDirs, filepath.Join(opts.StateDir, "cni")); err != nil {
			return nil, err
		}
	}
	if opts.Bridge.Name != "" {
		opts.Bridge.StateDir = filepath.Join(opts.StateDir, "bridge")
		if n.bridge, err = NewBridge(opts.Bridge); err != nil {
			return nil, err
		}
	}
	if n.cni == nil && n.bridge == nil {
		return nil, fmt.Errorf("pod network: neither a CNI configuration directory nor a bridge is configured: %w", errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// current is the network of new pods of a handler.
func (n *Node) current(handler string) network {
	if n.bridge == nil || n.cni != nil && n.cni.Configured(handler) {
		return n.cni
	}
	return n.bridge
}

// both are the networks that pods may have.
func (n *Node) both() []network {
	var out []network
	if n.cni != nil {
		out = append(out, n.cni)
	}
	if n.bridge != nil {
		out = append(out, n.bridge)
	}
	return out
}

// Setup implements Network.
func (n *Node) Setup(ctx context.Context, pod Pod) (Result, error) {
	if n.cni != nil && n.cni.has(pod.ID) || n.bridge != nil && n.bridge.has(pod.ID) {
		return Result{}, fmt.Errorf("set up pod network: pod %s has a network already: %w", pod.ID, errdefs.ErrAlreadyExists)
	}
	return n.current(pod.Handler).Setup(ctx, pod)
}

// Teardown implements Network.
func (n *Node) Teardown(ctx context.Context, pod Pod) error {
	var errs []error
	for _, network := range n.both() {
		errs = append(errs, network.Teardown(ctx, pod))
	}
	return errors.Join(errs...)
}

// Check implements Network.
func (n *Node) Check(ctx context.Context, pod Pod) error {
	for _, network := range n.both() {
		if err := network.Check(ctx, pod); !errdefs.IsNotFound(err) {
			return err
		}
	}
	return fmt.Errorf("check pod network: pod %s has none: %w", pod.ID, errdefs.ErrNotFound)
}

// Status implements Network.
func (n *Node) Status() error { return n.current("").Status() }

// StatusOf is the Status for pods of a handler.
func (n *Node) StatusOf(handler string) error {
	if n.bridge == nil || n.cni != nil && n.cni.Configured(handler) {
		return n.cni.StatusOf(handler)
	}
	return n.bridge.Status()
}

// CollectGarbage frees what CNI plugins keep for pods that nobody knows; see CNI.CollectGarbage.
func (n *Node) CollectGarbage(ctx context.Context) error {
	if n.cni == nil {
		return nil
	}
	return n.cni.CollectGarbage(ctx)
}

// Reconcile implements Network.
func (n *Node) Reconcile(ctx context.Context, keep map[string]bool) error {
	var errs []error
	for _, network := range n.both() {
		errs = append(errs, network.Reconcile(ctx, keep))
	}
	return errors.Join(errs...)
}

// Close implements Network.
func (n *Node) Close() error {
	var errs []error
	for _, network := range n.both() {
		errs = append(errs, network.Close())
	}
	return errors.Join(errs...)
}

// Wipe tears all pods down, removes what the bridge made on the host, and closes the node.
func (n *Node) Wipe(ctx context.Context) error {
	var errs []error
	if n.cni != nil {
		errs = append(errs, n.cni.Reconcile(ctx, nil), n.cni.Close())
	}
	if n.bridge != nil {
		errs = append(errs, n.bridge.Wipe(ctx))
	}
	return errors.Join(errs...)
}
