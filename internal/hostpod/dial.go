package hostpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// addressesFile has the pod's addresses, one a line.
const addressesFile = "addresses"

// Dial connects from inside the pod's network namespace.
func (t *tasks) Dial(ctx context.Context, network, address string) (io.ReadWriteCloser, error) {
	var dialer net.Dialer
	if t.p.netns == "" {
		return dialer.DialContext(ctx, network, address)
	}
	var conn net.Conn
	err := netns.Do(t.p.netns, func() (err error) {
		// The address is numeric, so that the socket is made here, on the thread that is in the namespace.
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	if err != nil && t.p.shim {
		conn, err = t.dialPod(ctx, network, address, err)
	}
	if err != nil {
		return nil, err // not a typed nil
	}
	return conn, nil
}

// dialPod connects to the pod's own addresses, as its neighbours do, where the shim has a network stack of its own and has
// taken them out of the namespace: nothing in there answers then. Else it is the error that there was.
func (t *tasks) dialPod(ctx context.Context, network, address string, failed error) (net.Conn, error) {
	taken, err := t.addressesTaken()
	if err != nil || !taken {
		return nil, errors.Join(failed, err)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	known, err := os.ReadFile(t.p.file(addressesFile))
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	errs := []error{failed}
	for ip := range strings.FieldsSeq(string(known)) {
		conn, err := dialer.DialContext(ctx, network, net.JoinHostPort(ip, port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// addressesTaken tells whether no interface of the pod has an address any more, but for what the kernel gives each.
func (t *tasks) addressesTaken() (taken bool, err error) {
	err = netns.Do(t.p.netns, func() error {
		found, err := rtnl.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		taken = true
		for _, addr := range found {
			if addr.IP.IsGlobalUnicast() {
				taken = false
			}
		}
		return nil
	})
	return taken, err
}
