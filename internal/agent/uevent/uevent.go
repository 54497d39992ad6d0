// Package uevent waits for devices: it asks again whenever the kernel reports a change of its devices.
//
// It owns nothing beyond a call and imports nothing of ours.
package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Wait calls try until it reports true or an error, first at once and then after every kernel event, until ctx
// ends; then it returns ctx's cause.
func Wait(ctx context.Context, try func() (bool, error)) error {
	// Listening comes before the first look, or an event between the two would be lost.
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("uevent socket: %w", err)
	}
	events := os.NewFile(uintptr(fd), "uevent")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("uevent socket: bind: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Now()) })
	defer stop()
	buf := make([]byte, 8<<10)
	for {
		if ok, err := try(); ok || err != nil {
			return err
		}
		// What an event says does not matter, and a lost one (ENOBUFS) means the same as one that came.
		if _, err := events.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("uevent socket: read: %w", err)
		}
	}
}
