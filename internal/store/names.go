package store

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Names maps names that must be unique to the ids that hold them. The zero value is ready.
type Names struct {
	mu     sync.Mutex
	owners map[string]string
}

// Reserve gives the name to id. It is AlreadyExists, and says who has it, when the name is another's; for the
// holder itself it succeeds.
func (n *Names) Reserve(name, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if owner, taken := n.owners[name]; taken && owner != id {
		return fmt.Errorf("name %q is reserved for %q: %w", name, owner, errdefs.ErrAlreadyExists)
	}
	if n.owners == nil {
		n.owners = map[string]string{}
	}
	n.owners[name] = id
	return nil
}

// Release frees the name if id holds it.
func (n *Names) Release(name, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owners[name] == id {
		delete(n.owners, name)
	}
}
