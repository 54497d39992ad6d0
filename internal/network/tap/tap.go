package tap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// tapPrefix starts the names of the tap devices; the index of the interface that they stand for follows.
const tapPrefix = "pistap"

// filterPriority marks the filters of this package ("pi").
const filterPriority = 0x7069

// Attach makes a tap device for every Ethernet interface in the namespace, connects the two in both directions and
// returns what the guest needs to know, in the order of the interfaces' indices. The caller owns the tap descriptors;
// Detach removes the rest. What an earlier Attach left is replaced.
//
// It fails with ErrFailedPrecondition, naming what it found, when the namespace holds something that a guest could not
// be given and that would be lost, and with ErrNotFound when the namespace has gone. On an error nothing is left.
func Attach(ctx context.Context, netnsPath string) (nics []NIC, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("attach to the pod's network: %s: %w", netnsPath, err)
		}
	}()
	ns, err := netns.Open(netnsPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = netns.DoFile(ns, func() error {
		return withHandle(func(h *netlink.Handle) (err error) {
			nics, err = attach(ctx, h)
			return err
		})
	})
	return nics, err
}

// withHandle runs fn with a netlink socket in the namespace of the calling thread.
func withHandle(fn func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	return fn(h)
}

// attach runs in the pod's namespace.
func attach(ctx context.Context, h *netlink.Handle) (nics []NIC, err error) {
	pod, err := survey(h)
	if err != nil {
		return nil, err
	}
	if err := pod.refuse(); err != nil {
		return nil, err
	}
	if err := detach(h); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		for _, nic := range nics {
			nic.Tap.Close()
		}
		nics, err = nil, errors.Join(err, detach(h))
	}()
	for _, link := range pod.links {
		if err := ctx.Err(); err != nil {
			return nics, err
		}
		nic := pod.nics[link.Attrs().Index]
		if nic.Tap, err = connect(h, link); err != nil {
			return nics, fmt.Errorf("interface %s: %w", nic.Name, err)
		}
		nics = append(nics, *nic)
	}
	return nics, nil
}

// connect makes the tap device for link and sends the frames of each out of the other.
func connect(h *netlink.Handle, link netlink.Link) (_ *os.File, err error) {
	name := fmt.Sprint(tapPrefix, link.Attrs().Index)
	file, err := open(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	tap, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find tap device %s: %w", name, err)
	}
	// The host itself has nothing to say on this wire.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("switch IPv6 off on tap device %s: %w", name, err)
	}
	if err := h.LinkSetMTU(tap, link.Attrs().MTU); err != nil {
		return nil, fmt.Errorf("set MTU %d of tap device %s: %w", link.Attrs().MTU, name, err)
	}
	if err := h.LinkSetUp(tap); err != nil {
		return nil, fmt.Errorf("set tap device %s up: %w", name, err)
	}
	from, to := link.Attrs().Index, tap.Attrs().Index
	if err := redirect(h, from, to); err != nil {
		return nil, err
	}
	return file, redirect(h, to, from)
}

// open makes a tap device in the namespace of the calling thread.
func open(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("open /dev/net/tun: %w: this kernel has no tap devices (load the module tun): %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun:"+name), nil
}

// redirect sends every frame that comes in at one interface out of the other.
func redirect(h *netlink.Handle, from, to int) error {
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from, Parent: netlink.HANDLE_INGRESS, Handle: ingressHandle}}
	if err := h.QdiscAdd(ingress); err != nil {
		return fmt.Errorf("add an ingress queueing discipline (the kernel needs CONFIG_NET_SCH_INGRESS): %w", err)
	}
	// Without keys the selector matches everything, frames that hold nothing too.
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: ingressHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Sel:         &netlink.TcU32Sel{Flags: 1 /* TC_U32_TERMINAL */},
		Actions:     []netlink.Action{netlink.NewMirredAction(to)},
	}
	if err := h.FilterAdd(filter); err != nil {
		return fmt.Errorf("redirect frames (the kernel needs CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED): %w", err)
	}
	return nil
}

// ingressHandle is the handle of every ingress queueing discipline.
var ingressHandle = netlink.MakeHandle(0xffff, 0)

// Detach removes from the namespace what Attach made there; it may be called again, and after the namespace has gone.
func Detach(_ context.Context, netnsPath string) error {
	err := netns.Do(netnsPath, func() error { return withHandle(detach) })
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("detach from the pod's network: %s: %w", netnsPath, err)
	}
	return nil
}

func detach(h *netlink.Handle) error {
	links, err := rtnl.Dump(h.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, link := range links {
		name := link.Attrs().Name
		if isTap(link) {
			if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("remove tap device %s: %w", name, err))
			}
			continue
		}
		ours, err := ownIngress(h, link)
		if err == nil && ours != nil {
			err = h.QdiscDel(ours)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("stop redirecting frames of %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func isTap(link netlink.Link) bool {
	return link.Type() == "tuntap" && strings.HasPrefix(link.Attrs().Name, tapPrefix)
}

// ownIngress returns the link's ingress queueing discipline if Attach made it.
func ownIngress(h *netlink.Handle, link netlink.Link) (netlink.Qdisc, error) {
	qdiscs, err := rtnl.Dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(link) })
	if err != nil {
		return nil, fmt.Errorf("list queueing disciplines: %w", err)
	}
	for _, q := range qdiscs {
		if q.Type() != "ingress" {
			continue
		}
		filters, err := rtnl.Dump(func() ([]netlink.Filter, error) { return h.FilterList(link, ingressHandle) })
		if err != nil {
			return nil, fmt.Errorf("list filters: %w", err)
		}
		for _, f := range filters {
			if f.Attrs().Priority != filterPriority {
				return nil, nil
			}
		}
		return q, nil
	}
	return nil, nil
}
