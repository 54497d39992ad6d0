package shim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/share"
	"github.com/pistis-run/pistis/internal/vm"
)

// shareValid is how long a guest believes names and attributes of the host's files without asking again.
const shareValid = time.Second

// shareMounts shares the sources of a spec's bind mounts with the guest and rewrites them to where they are there. The
// caller releases the ids; on error there are none.
func shareMounts(ctx context.Context, v *vm.VM, mounts []specs.Mount) (ids []string, err error) {
	for i, m := range mounts {
		if m.Type != "bind" {
			continue
		}
		id, path, err := v.AttachShare(ctx, share.Share{
			Path:     m.Source,
			ReadOnly: slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro"), Recursive: slices.Contains(m.Options, "rro"),
			Follow: slices.Contains(m.Options, "rslave") || slices.Contains(m.Options, "slave"),
			Valid:  validity(m.Source),
		})
		if err != nil {
			err = fmt.Errorf("mount at %s: %w", m.Destination, err)
			return nil, errors.Join(err, v.ReleaseShares(context.WithoutCancel(ctx), ids))
		}
		ids = append(ids, id)
		mounts[i].Source = path
	}
	return ids, nil
}

// validity is 0 for the volumes that the kubelet updates while they are used: an update shows at once, and the parts of
// it never mixed.
func validity(path string) time.Duration {
	for _, kind := range []string{"configmap", "secret", "projected", "downward-api"} {
		if strings.Contains(path, "/volumes/kubernetes.io~"+kind+"/") {
			return 0
		}
	}
	return shareValid
}
