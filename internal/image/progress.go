package image

import (
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Status of a pull's Progress.
const (
	StatusResolving   = "resolving"
	StatusDownloading = "downloading"
	StatusConverting  = "converting"
	StatusDone        = "done"
)

// progress is what a pull has done so far.
type progress struct {
	mu     sync.Mutex
	ref    string
	status string
	blobs  []BlobProgress
	total  bool // all blobs are known
	// last is when something moved; waiting counts what waits for its turn, working what has it.
	last             time.Time
	waiting, working int
}

func newProgress(ref string) *progress {
	return &progress{ref: ref, status: StatusResolving, last: time.Now()}
}

func (p *progress) set(status string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.last = status, time.Now()
}

// expect announces blobs. After complete, Total is the sum of all.
func (p *progress) expect(complete bool, descs ...ocispec.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range descs {
		if p.find(d.Digest) < 0 {
			p.blobs = append(p.blobs, BlobProgress{Digest: d.Digest, Total: d.Size})
		}
	}
	p.total = p.total || complete
}

func (p *progress) find(d digest.Digest) int {
	return slices.IndexFunc(p.blobs, func(b BlobProgress) bool { return b.Digest == d })
}

// at says that a blob has its first offset bytes.
func (p *progress) at(d digest.Digest, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	if i := p.find(d); i >= 0 {
		p.blobs[i].Offset = offset
	}
}

// wait marks that something waits for its turn until the returned function is called.
func (p *progress) wait() (done func()) { return p.count(&p.waiting) }

// work marks that something is being downloaded until the returned function is called.
func (p *progress) work() (done func()) { return p.count(&p.working) }

func (p *progress) count(what *int) (done func()) {
	add := func(n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		*what += n
		p.last = time.Now()
	}
	add(1)
	return func() { add(-1) }
}

// idle is for how long nothing has come from the network. Making forms of the layers is not the network. Who only waits is idle
// for another pull's sake; who works too may be what it waits for.
func (p *progress) idle() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (p.waiting > 0 && p.working == 0) || p.status == StatusConverting || p.status == StatusDone {
		return 0
	}
	return time.Since(p.last)
}

func (p *progress) snapshot() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := Progress{Ref: p.ref, Status: p.status, Blobs: slices.Clone(p.blobs)}
	for _, b := range p.blobs {
		out.Offset += b.Offset
		if p.total {
			out.Total += b.Total
		}
	}
	return out
}
