package taskshim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// infoTimeout bounds what a shim's binary may take to say what its runtime can.
	infoTimeout = 10 * time.Second
	// maxInfo bounds what it may say, in bytes.
	maxInfo = 1 << 20
)

// Abilities are what the runtime behind a shim can, of what is promised for a handler. What it does not say it cannot.
type Abilities struct {
	// RecursiveReadOnly: mounts that are read-only with all that is mounted below them. IDMaps: mounts for users of other ids.
	RecursiveReadOnly, IDMaps bool
}

// Ask asks a shim's binary. NotImplemented where it does not know the question.
func Ask(ctx context.Context, binary string, options *anypb.Any) (Abilities, error) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-info")
	cmd.Dir, cmd.Env = "/", []string{path}
	if options != nil {
		input, err := proto.Marshal(options)
		if err != nil {
			return Abilities{}, err
		}
		cmd.Stdin = bytes.NewReader(input)
	}
	var text bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &text, outputDelay
	out, err := cmd.Output()
	if err != nil {
		return Abilities{}, fmt.Errorf("%s -info: %w: %s: %w", binary, err, words(text.Bytes()), errdefs.ErrNotImplemented)
	}
	return parseInfo(out)
}

func parseInfo(out []byte) (Abilities, error) {
	var info types.RuntimeInfo
	if len(out) > maxInfo {
		return Abilities{}, fmt.Errorf("what a shim says of its runtime has %d bytes: %w", len(out), errdefs.ErrInternal)
	}
	if err := proto.Unmarshal(out, &info); err != nil {
		return Abilities{}, fmt.Errorf("what a shim says of its runtime: %w: %w", err, errdefs.ErrInternal)
	}
	var known features.Features
	if value := info.GetFeatures().GetValue(); len(value) > 0 {
		if err := json.Unmarshal(value, &known); err != nil {
			return Abilities{}, fmt.Errorf("what a shim says of its runtime: %w: %w", err, errdefs.ErrInternal)
		}
	}
	abilities := Abilities{RecursiveReadOnly: slices.Contains(known.MountOptions, "rro")}
	if l := known.Linux; l != nil && l.MountExtensions != nil && l.MountExtensions.IDMap != nil && l.MountExtensions.IDMap.Enabled != nil {
		abilities.IDMaps = *l.MountExtensions.IDMap.Enabled
	}
	return abilities, nil
}
