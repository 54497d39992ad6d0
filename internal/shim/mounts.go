package shim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/share"
	"github.com/pistis-run/pistis/internal/vm"
)

// shareValid is how long a guest believes names and attributes of the host's files without asking again.
const shareValid = time.Second

// shareMounts shares the sources of a spec's bind mounts with the guest and rewrites them to where they are there. The
// caller releases the ids; on error there are none.
func shareMounts(ctx context.Context, v *vm.VM, mounts []specs.Mount) (ids []string, err error) {
	for i, m := range mounts {
		if m.Type != "bind" || m.Source == "" {
			continue
		}
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
		alone := keepsModes(want)
		id, path, err := v.AttachShare(ctx, want, alone)
		if err != nil {
			err = fmt.Errorf("mount at %s: %w", m.Destination, err)
			return nil, errors.Join(err, v.ReleaseShares(context.WithoutCancel(ctx), ids))
		}
		ids = append(ids, id)
		mounts[i].Source = path
		if alone {
			mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
		}
	}
	return ids, nil
}

// memoryMounts takes the volumes that are in memory from a spec's bind mounts: their memory is to be the guest's. Their
// sources are the agent's to set.
func memoryMounts(mounts []specs.Mount) ([]*agentv1.MemoryMount, error) {
	var out []*agentv1.MemoryMount
	for i, m := range mounts {
		if m.Type != "bind" {
			continue
		}
		found, err := share.FindMemory(m.Source)
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
	below, err := share.MountsBelow(s.Path)
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
