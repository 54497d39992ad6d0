package cri

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/sandbox"
)

// Annotations by which a pod without a RuntimeClass says that it is not trusted.
const (
	// TrustedAnnotation: absent or exactly "true" is trusted, anything else is not.
	TrustedAnnotation = "io.kubernetes.cri-o.TrustedSandbox"
	// UntrustedAnnotation: absent, "" or "false" is trusted, anything else is not.
	UntrustedAnnotation = "io.kubernetes.cri.untrusted-workload"
)

// Handlers are the runtime handlers of this node.
type Handlers struct {
	Default string
	// Untrusted is for pods that are annotated as untrusted; empty: they are refused.
	Untrusted string
	ByName    map[string]Handler
}

// Handler is one runtime handler.
type Handler struct {
	// VM: its pods have their own kernel.
	VM bool
	// Ready says why the handler cannot run a pod, as FailedPrecondition, and what to do. Nil: it can.
	Ready func() error
	// UserNamespaces says whether its pods can have user namespaces of their own. Nil: no.
	UserNamespaces func() bool
	// RecursiveReadOnly says why its containers cannot have mounts that are read-only throughout. Nil: they can.
	RecursiveReadOnly func() error
}

// recursiveReadOnly is nil where the handler's containers can have such mounts.
func (h Handler) recursiveReadOnly() error {
	if h.RecursiveReadOnly == nil {
		return nil
	}
	return h.RecursiveReadOnly()
}

func (h Handlers) names() []string { return slices.Sorted(maps.Keys(h.ByName)) }

// features are what the kubelet may ask of a handler's pods.
func (h Handlers) features(name string) *runtime.RuntimeHandlerFeatures {
	handler := h.ByName[name]
	return &runtime.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: handler.recursiveReadOnly() == nil,
		UserNamespaces:          handler.UserNamespaces != nil && handler.UserNamespaces(),
	}
}

// Select picks the handler of a pod: the requested one, else by its annotations, else the default. It
// fails closed: an untrusted pod runs in a VM or not at all.
func (h Handlers) Select(requested string, annotations map[string]string) (string, error) {
	if requested != "" {
		if _, ok := h.ByName[requested]; !ok {
			return "", fmt.Errorf("runtime handler %q is not configured; the handlers of this node are %q: %w",
				requested, h.names(), errdefs.ErrInvalidArgument)
		}
		return requested, nil
	}
	if trusted(annotations) {
		if _, ok := h.ByName[h.Default]; !ok {
			return "", fmt.Errorf("default runtime handler %q is not configured; the handlers of this node are %q: %w",
				h.Default, h.names(), errdefs.ErrFailedPrecondition)
		}
		return h.Default, nil
	}
	handler, ok := h.ByName[h.Untrusted]
	switch {
	case h.Untrusted == "":
		return "", fmt.Errorf("the pod is annotated as untrusted, and this node has no handler for such pods; "+
			"set untrusted_handler in pistisd's configuration, or give the pod a RuntimeClass: %w", errdefs.ErrFailedPrecondition)
	case !ok || !handler.VM:
		return "", fmt.Errorf("the pod is annotated as untrusted, and the handler for such pods, %q, is not a microVM handler; "+
			"correct untrusted_handler in pistisd's configuration: %w", h.Untrusted, errdefs.ErrFailedPrecondition)
	}
	return h.Untrusted, nil
}

func trusted(annotations map[string]string) bool {
	if value, ok := annotations[TrustedAnnotation]; ok && value != "true" {
		return false
	}
	value := annotations[UntrustedAnnotation]
	return value == "" || value == "false"
}

// ready says whether the handler can run a pod now.
func (h Handlers) ready(name string) error {
	handler, ok := h.ByName[name]
	if !ok {
		return fmt.Errorf("runtime handler %q is not configured: %w", name, errdefs.ErrFailedPrecondition)
	}
	if handler.Ready == nil {
		return nil
	}
	if err := handler.Ready(); err != nil {
		return fmt.Errorf("runtime handler %q cannot run pods: %w", name, err)
	}
	return nil
}

// known refuses a handler that is not configured; empty is the default.
func (h Handlers) known(name string) error {
	if name == "" {
		return nil
	}
	_, err := h.Select(name, nil)
	return err
}

// fitsHandler refuses what the handler's kind of pod cannot honour.
func fitsHandler(cfg sandbox.Config, h Handler) error {
	if !h.VM {
		return nil
	}
	for namespace, host := range map[string]bool{"network": cfg.HostNetwork, "PID": cfg.HostPID, "IPC": cfg.HostIPC} {
		if host {
			return invalid("the pod asks for the host's %s namespace, and runtime handler %q runs pods in microVMs, which have "+
				"kernels of their own; take host%s out of the pod, or give it a RuntimeClass that runs it on the host's kernel",
				namespace, cfg.Handler, map[string]string{"network": "Network", "PID": "PID", "IPC": "IPC"}[namespace])
		}
	}
	return nil
}
