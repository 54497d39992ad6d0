package image

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

func TestPullConcurrently(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	shared := incompressible(1 << 16)
	one, two := makeImage(t, thisArch, shared, "one"), makeImage(t, thisArch, shared, "two")
	refs := []string{r.push(t, "one:1", one), r.push(t, "two:1", two)}
	_, _, ids := digests(t, one)
	hold := make(chan struct{})
	var once sync.Once
	started := make(chan struct{})
	r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			once.Do(func() { close(started) })
			<-hold
		}
		return false
	})
	first, cancelFirst := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(first, PullRequest{Ref: refs[0]}); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that gave up: %v", err)
		}
	})
	<-started
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: refs[i%2]}); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, f := range s.flights {
			n += f.waiters
		}
		return n == 21
	})
	cancelFirst()
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, f := range s.flights {
			n += f.waiters
		}
		return n == 20
	})
	close(hold)
	wg.Wait()
	if n := r.blobRequests(ids[0]); n != 1 {
		t.Errorf("the shared layer was asked for %d times", n)
	}
}

// waitFor polls a condition that nothing announces.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

// TestPullLastWaiter: when nobody waits any more the download ends.
func TestPullLastWaiter(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	ref := r.push(t, "app:1", makeImage(t, thisArch, "one"))
	gone := make(chan struct{})
	started := make(chan struct{})
	r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			close(started)
			<-req.Context().Done()
			close(gone)
			return true
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := s.Pull(ctx, PullRequest{Ref: ref}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-gone
	r.setIntercept(nil)
	mustPull(t, s, ref)
}

func TestPullStalls(t *testing.T) {
	r, s := newRegistry(t), openService(t, func(o *Options) { o.PullTimeout, o.MaxConcurrentDownloads = 100*time.Millisecond, 2 })
	src := makeImage(t, thisArch, "one", "two", "three") // the third layer waits for the others
	_, _, layers := digests(t, src)
	ref := r.push(t, "app:1", src)
	r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet && slices.ContainsFunc(layers, func(d digest.Digest) bool { return strings.HasSuffix(req.URL.Path, d.String()) }) {
			<-req.Context().Done()
			return true
		}
		return false
	})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "sent nothing") {
		t.Errorf("got %v", err)
	}
}

// TestPullMakesFormsMeanwhile: the lowest layer's form is begun before the next layer has come.
func TestPullMakesFormsMeanwhile(t *testing.T) {
	r, s, forms := newRegistry(t), openService(t), &startedForms{begun: make(chan struct{})}
	s.SetForms(forms)
	src := makeImage(t, thisArch, "one", "two")
	_, _, layers := digests(t, src)
	ref := r.push(t, "app:1", src)
	r.setIntercept(func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, layers[1].String()) {
			<-forms.begun
		}
		return false
	})
	mustPull(t, s, ref)
	if len(forms.prepared) != 2 {
		t.Errorf("made: %q", forms.prepared)
	}
}

// TestFailureWhileOthersWait: what failed is told, and not that others were given up for it, neither layers that wait for their
// download nor such as wait for those below them.
func TestFailureWhileOthersWait(t *testing.T) {
	src := makeImage(t, thisArch, "one", "two", "three")
	lowest, err := src.Layers()
	if err != nil {
		t.Fatal(err)
	}
	size, err := lowest[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	for name, fail := range map[string]func(forms *recordingForms, lowest bool, w http.ResponseWriter, req *http.Request) bool{
		"download": func(_ *recordingForms, lowest bool, w http.ResponseWriter, _ *http.Request) bool {
			if lowest {
				w.Write(make([]byte, size)) // another blob
			}
			return lowest
		},
		"form": func(forms *recordingForms, lowest bool, _ http.ResponseWriter, req *http.Request) bool {
			forms.fail = errdefs.ErrDataLoss
			if !lowest {
				<-req.Context().Done()
			}
			return !lowest
		},
	} {
		r, s, forms := newRegistry(t), openService(t, func(o *Options) { o.MaxConcurrentDownloads = 1 }), &recordingForms{}
		s.SetForms(forms)
		_, _, layers := digests(t, src)
		ref := r.push(t, "app:1", src)
		r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
			for i, l := range layers {
				if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, l.String()) {
					return fail(forms, i == 0, w, req)
				}
			}
			return false
		})
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsDataLoss(err) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// startedForms tells when the first form is begun.
type startedForms struct {
	recordingForms
	once  sync.Once
	begun chan struct{}
}

func (f *startedForms) Begin(ctx context.Context, stack []Layer) (wait func() error) {
	f.once.Do(func() { close(f.begun) })
	return f.recordingForms.Begin(ctx, stack)
}
