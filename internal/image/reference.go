package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// minPrefix is the fewest digits that an abbreviated image id may have.
const minPrefix = 6

var (
	fullID = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	partID = regexp.MustCompile(fmt.Sprintf(`^(sha256:)?[0-9a-f]{%d,64}$`, minPrefix))
)

// Normalize gives the full form of a name: busybox becomes docker.io/library/busybox:latest. Of a name with both a tag
// and a digest the digest alone is kept: it is what decides. InvalidArgument for what is no image reference.
func Normalize(ref string) (string, error) {
	named, err := parse(ref)
	if err != nil {
		return "", err
	}
	return named.String(), nil
}

func parse(ref string) (reference.Named, error) {
	if ref == "" {
		return nil, fmt.Errorf("image reference: empty, give a name such as registry.example/app:1.0: %w", errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

// digestName is how an image is called by the digest of its manifest or index.
func digestName(named reference.Named, digest string) string {
	return reference.TrimNamed(named).Name() + "@" + digest
}

// isTag tells the names with a tag from those with a digest. A name that is an image id means the image has no other.
func isTag(name string) bool    { return !strings.Contains(name, "@") && !fullID.MatchString(name) }
func isDigest(name string) bool { return strings.Contains(name, "@") }
