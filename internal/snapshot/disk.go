package snapshot

import (
	"context"
	"errors"
	"os"
	"sync"
)

// Disks are layers as read-only ext4 images, and empty writable disks.
type Disks struct {
	*Layers
	templates sync.Mutex // one new scratch template at a time
}

// OpenDisks opens the directory root, which it owns until Close, and removes what a process that died left unfinished.
// FailedPrecondition when another process has it open.
func OpenDisks(root string, source layerSource) (*Disks, error) {
	l, err := open(root, source, form{what: "layer disks", version: ".v1", extension: ".ext4", write: writeDisk})
	if err != nil {
		return nil, err
	}
	return &Disks{Layers: l}, nil
}

// writeDisk is a form's write.
func writeDisk(ctx context.Context, path string, open opener, inherit inheriter) (dependent bool, err error) {
	disk, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	implied, err := convert(ctx, open, disk, nil)
	if err != nil {
		return false, err
	}
	if len(implied) > 0 {
		inherited, err := inherit(implied)
		if err == nil && len(inherited) > 0 {
			_, err = convert(ctx, open, disk, inherited)
		}
		if err != nil {
			return false, err
		}
	}
	return len(implied) > 0, disk.Sync()
}
