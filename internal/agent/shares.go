package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/share"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/transport"
)

const (
	maxShares = 512
	// shareEndTimeout bounds the wait for the end of a share that was unmounted: the mount of a container that has
	// just ended may outlive it for a moment.
	shareEndTimeout = 10 * time.Second
)

var validShare = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,63}$`)

// hostShare is a mounted share. mount is nil while it is being mounted.
type hostShare struct {
	mount *share.Mount
	done  chan struct{} // closed when nothing is left of it
}

// serveShare mounts a share and relays its messages for as long as it is mounted.
func (a *Agent) serveShare(h *agentv1.ShareStream, conn duplex) error {
	s, err := a.claimShare(h.Id)
	if err != nil {
		return reply(conn, err)
	}
	defer func() {
		a.mu.Lock()
		delete(a.shares, h.Id)
		a.mu.Unlock()
		close(s.done)
	}()
	path := agentv1.SharePath(h.Id)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return reply(conn, err)
	}
	mount, err := share.New(path, h.File, a.eagerness, a.shareMemory())
	if err != nil {
		return reply(conn, err)
	}
	defer func() {
		if err := mount.Remove(); err != nil {
			a.Log.Warn("share not removed", logfields.Share, h.Id, logfields.Error, err)
		}
	}()
	defer mount.Close()
	if err := transport.Widen(conn, agentv1.ShareRoom); err != nil {
		return reply(conn, err)
	}
	a.mu.Lock()
	s.mount = mount
	a.mu.Unlock()
	if err := reply(conn, nil); err != nil {
		return err
	}
	if err := mount.Relay(conn, h.Unanswered); err != nil {
		a.Log.Warn("share lost", logfields.Share, h.Id, logfields.Error, err)
	}
	return nil
}

func (a *Agent) claimShare(id string) (*hostShare, error) {
	if !validShare.MatchString(id) {
		return nil, invalid("share id %.100q: 1 to 64 letters, digits and '-' are possible", id)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.shares[id] != nil:
		return nil, fmt.Errorf("share %s: %w", id, errdefs.ErrAlreadyExists)
	case len(a.shares) >= maxShares:
		return nil, fmt.Errorf("share %s: the pod has %d shares: %w", id, maxShares, errdefs.ErrResourceExhausted)
	}
	s := &hostShare{done: make(chan struct{})}
	a.shares[id] = s
	return s, nil
}

func (a *Agent) findShare(id string) (*hostShare, *share.Mount) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.shares[id]
	if s == nil {
		return nil, nil
	}
	return s, s.mount
}

// RemoveShare implements agentv1.AgentService.
func (a *Agent) RemoveShare(ctx context.Context, req *agentv1.RemoveShareRequest) (*agentv1.Empty, error) {
	s, mount := a.findShare(req.Id)
	if s == nil {
		return nil, fmt.Errorf("remove share %.100q: %w", req.Id, errdefs.ErrNotFound)
	}
	if mount == nil {
		return nil, precondition("remove share %s: it is being mounted", req.Id)
	}
	if err := mount.Unmount(); errors.Is(err, unix.EBUSY) {
		return nil, precondition("remove share %s: %w", req.Id, err)
	} else if err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("remove share %s: %w", req.Id, err)
	}
	bound := time.NewTimer(shareEndTimeout)
	defer bound.Stop()
	select {
	case <-s.done:
		return &agentv1.Empty{}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-bound.C:
	}
	// Something still has it open: that loses it, as it would lose a disk that is unplugged.
	mount.Close()
	<-s.done
	return &agentv1.Empty{}, nil
}
