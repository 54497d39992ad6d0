// Package volumes finds out how each volume of a container comes into its VM: as a share of the host's directory or file, as a
// part of one, or as memory of the guest's.
//
// It owns nothing: what it shares is released by its caller. It must not import the shim.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/hostmount"
	"github.com/pistis-run/pistis/internal/share"
)

// machine is the VM.
type machine interface {
	AttachShare(ctx context.Context, want share.Share, alone bool) (id, path string, err error)
	ReleaseShares(ctx context.Context, ids []string) error
}

// Placed are the volumes of a container in its VM.
type Placed struct {
	// Shares are to be released when the container is gone.
	Shares []string
	// Memory and Parts are mounts whose sources are the agent's to set.
	Memory []*agentv1.MemoryMount
	Parts  []*agentv1.SharePart
}

// shareValid is how long a guest believes names and attributes of the host's files without asking again.
const shareValid = time.Second

// Place finds a place in the guest for the sources of a spec's bind mounts and rewrites them. On error nothing is shared. parts: the
// agent finds parts of shares.
func Place(ctx context.Context, v machine, mounts []specs.Mount, parts bool) (p Placed, err error) {
	if p.Memory, err = memoryMounts(mounts); err != nil {
		return Placed{}, err
	}
	for i, m := range mounts {
		if m.Type != "bind" || m.Source == "" {
			continue
		}
		if err := p.share(ctx, v, mounts, i, parts); err != nil {
			err = fmt.Errorf("mount at %s: %w", m.Destination, err)
			return Placed{}, errors.Join(err, v.ReleaseShares(context.WithoutCancel(ctx), p.Shares))
		}
	}
	return p, nil
}

// share shares the source of a mount with the guest.
func (p *Placed) share(ctx context.Context, v machine, mounts []specs.Mount, i int, parts bool) error {
	m := &mounts[i]
	want := share.Share{
		Path:     m.Source,
		ReadOnly: slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro"), Recursive: slices.Contains(m.Options, "rro"),
		Follow: slices.Contains(m.Options, "rslave") || slices.Contains(m.Options, "slave"),
		Valid:  shareValid,
	}
	if isUpdated(m.Source) {
		// An update shows at once, the parts of it never mixed, and who watches for it is told.
		want.Valid, want.Watch = 0, true
	}
	// One directory is one share, by whatever name it is asked for. What is not there is refused where it is shared.
	if real, err := filepath.EvalSymlinks(want.Path); err == nil {
		want.Path = real
	}
	part, err := findPart(&want, parts)
	if err != nil {
		return err
	}
	alone := keepsModes(want)
	id, path, err := v.AttachShare(ctx, want, alone)
	if err != nil {
		return err
	}
	p.Shares = append(p.Shares, id)
	m.Source = path
	if part != "" {
		m.Source = ""
		p.Parts = append(p.Parts, &agentv1.SharePart{Mount: uint32(i), Share: id, Path: part})
	}
	if alone {
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
	}
	return nil
}

// findPart has all of a volume shared where a part of it is wanted, which is returned: sockets, locks and maps are those of a share, and
// one container may mount the whole and another the part. Where mounts of the host matter that is not possible.
func findPart(want *share.Share, parts bool) (string, error) {
	if !parts || want.Follow || want.Recursive || want.Watch {
		return "", nil
	}
	found, err := hostmount.FindPart(want.Path)
	if err != nil || found == nil {
		return "", err
	}
	whole := *want
	whole.Path = found.Volume
	if keepsModes(whole) {
		return "", nil
	}
	*want = whole
	return found.Path, nil
}

// memoryMounts takes the volumes that are in memory from a spec's bind mounts: their memory is to be the guest's. Their
// sources are the agent's to set.
func memoryMounts(mounts []specs.Mount) ([]*agentv1.MemoryMount, error) {
	var out []*agentv1.MemoryMount
	for i, m := range mounts {
		if m.Type != "bind" {
			continue
		}
		found, err := hostmount.FindMemory(m.Source)
		if err != nil {
			return nil, fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
		if found == nil {
			continue
		}
		mounts[i].Source = ""
		out = append(out, &agentv1.MemoryMount{
			Mount: uint32(i), Volume: found.Volume, SizeBytes: found.Size, Mode: found.Mode, Uid: found.UID, Gid: found.GID, Path: found.Path,
		})
	}
	return out, nil
}

// keepsModes tells a mount that is read-only although mounts below it, now or later, may not be. To the guest all of
// it is one file system, which it must not make read-only then: the host's mounts decide.
func keepsModes(s share.Share) bool {
	if !s.ReadOnly || s.Recursive {
		return false
	}
	below, err := hostmount.Below(s.Path)
	return s.Follow || below && err == nil // a path that is not there is refused where it is shared
}

// isUpdated tells the volumes that the kubelet updates while they are used.
func isUpdated(path string) bool {
	for _, kind := range []string{"configmap", "secret", "projected", "downward-api"} {
		if strings.Contains(path, "/volumes/kubernetes.io~"+kind+"/") {
			return true
		}
	}
	return false
}
