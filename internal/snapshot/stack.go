package snapshot

import (
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/pistis-run/pistis/internal/image"
)

// stacked is a layer on top of others. Few layers depend on those below.
type stacked struct {
	id    digest.Digest // the DiffID
	below string        // tells the stacks below apart
}

// keyOf is the last layer of a stack.
func keyOf(stack []image.Layer) stacked {
	below := digest.Canonical.Digester()
	for _, lower := range stack[:len(stack)-1] {
		fmt.Fprintln(below.Hash(), lower.DiffID)
	}
	return stacked{id: stack[len(stack)-1].DiffID, below: below.Digest().Encoded()[:16]}
}

// sameBlobs compares where the content of two stacks comes from.
func sameBlobs(a, b []image.Layer) bool {
	return slices.EqualFunc(a, b, func(x, y image.Layer) bool { return x.Blob.Digest == y.Blob.Digest })
}
