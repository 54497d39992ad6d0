package tap

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/pistis-run/pistis/internal/network/netns"
)

// Report is what Inspect found.
type Report struct {
	// Problems name what a virtual machine would bypass; Attach refuses the namespace unless it is empty.
	Problems []string
	// Sysctls of the namespace as a whole that differ from those of a fresh one, as "net.ipv4.ip_forward". Those of the
	// interfaces are in the NICs.
	Sysctls map[string]string
}

// Inspect looks at a namespace without changing it. It fails with ErrNotFound when the namespace has gone.
func Inspect(ctx context.Context, netnsPath string) (Report, error) {
	var report Report
	var fresh, own map[string]string
	err := netns.DoNew(func() (err error) {
		fresh, err = namespaceSysctls()
		return err
	})
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = netns.Do(netnsPath, func() error {
			return withHandle(func(h *netlink.Handle) error {
				pod, err := survey(h)
				if err != nil {
					return err
				}
				report.Problems = pod.problems
				own, err = namespaceSysctls()
				return err
			})
		})
	}
	if err != nil {
		return Report{}, fmt.Errorf("inspect the pod's network: %s: %w", netnsPath, err)
	}
	report.Sysctls = map[string]string{}
	for path, value := range own {
		if was, known := fresh[path]; known && was != value && writable(path) {
			report.Sysctls[sysctlName(path)] = value
		}
	}
	return report, nil
}
