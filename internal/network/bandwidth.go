package network

import (
	"fmt"
	"math"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/api/resource"
)

// The annotations by which Kubernetes limits a pod's bandwidth, in bits per second.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// Kubernetes' bounds for these limits.
const (
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// bandwidth is the argument of the CNI capability of that name: rates in bits per second, bursts in bits.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// podBandwidth reads a pod's annotations. The zero value is no limit.
func podBandwidth(annotations map[string]string) (b bandwidth, err error) {
	if b.IngressRate, err = rate(annotations, ingressBandwidth); err != nil {
		return bandwidth{}, err
	}
	if b.EgressRate, err = rate(annotations, egressBandwidth); err != nil {
		return bandwidth{}, err
	}
	if b.IngressRate > 0 {
		b.IngressBurst = math.MaxUint32
	}
	if b.EgressRate > 0 {
		b.EgressBurst = math.MaxUint32
	}
	return b, nil
}

func rate(annotations map[string]string, key string) (uint64, error) {
	text, asked := annotations[key]
	if !asked {
		return 0, nil
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s: %q is not a quantity such as 10M: %w", key, text, errdefs.ErrInvalidArgument)
	}
	value := quantity.Value()
	if value < minBandwidth || value > maxBandwidth {
		return 0, fmt.Errorf("annotation %s: %s: a limit is 1k to 1P bits per second: %w", key, text, errdefs.ErrInvalidArgument)
	}
	return uint64(value), nil
}
