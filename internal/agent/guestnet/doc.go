// Package guestnet configures the guest's network by netlink, and counts its traffic.
//
// It owns the addresses, routes, neighbours, names and MTU of every interface but the loopback. [Apply]
// must not run twice at once. It imports messages only.
package guestnet
