package hypervisor

import "github.com/containerd/errdefs"

// ErrInvalidConfig is what Config.Validate returns.
var ErrInvalidConfig = errdefs.ErrInvalidArgument
