package hypervisor

import (
	"errors"

	"github.com/containerd/errdefs"
)

// ErrInvalidConfig is what Config.Validate returns.
var ErrInvalidConfig = errdefs.ErrInvalidArgument

// ErrPoweredOff is what VM.Err returns when the guest ended by itself and as it should.
var ErrPoweredOff = errors.New("the guest powered off")

// ErrKilled is in what VM.Err returns when somebody has killed the VMM: the kernel, for want of memory, or anybody else.
var ErrKilled = errors.New("was killed by signal 9 (killed)")

// ErrTooLarge is a size beyond what a VM was made for.
var ErrTooLarge = errdefs.ErrResourceExhausted
