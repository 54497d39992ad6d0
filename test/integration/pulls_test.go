package integration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/pistis-run/pistis/test/images"
)

// cutter ends connections in the middle of blobs, as long as it is told to.
type cutter struct {
	after atomic.Int64 // bytes of a blob that pass; negative: all
	cuts  atomic.Int64
	sent  atomic.Int64 // bytes of blobs in all
}

func (c *cutter) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			w = &cutWriter{ResponseWriter: w, cutter: c, left: c.after.Load()}
		}
		next.ServeHTTP(w, r)
	})
}

type cutWriter struct {
	http.ResponseWriter
	cutter *cutter
	left   int64
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if w.left >= 0 && int64(len(p)) > w.left {
		n, _ := w.ResponseWriter.Write(p[:w.left])
		w.cutter.sent.Add(int64(n))
		w.cutter.cuts.Add(1)
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	if w.left >= 0 {
		w.left -= int64(len(p))
	}
	w.cutter.sent.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// TestInterruptedPull: connections that break are resumed where they broke; a registry that gives nothing at all is an
// error that says so, after which the pull works as soon as the registry does.
func TestInterruptedPull(t *testing.T) {
	d := startDaemon(t, "")
	var c cutter
	r := images.StartWith(t, images.Options{Groups: []images.Group{images.Tour}, Wrap: c.wrap})
	image := r.Ref("pistis/tour:latest")

	c.after.Store(0)
	_, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec(image)})
	// CRI wants it so: the kubelet knows this error by the beginning of its text, and only without a code.
	refused(t, "a pull that gets no byte", err, codes.Unknown, crierrors.ErrRegistryUnavailable.Error(), r.Address)
	d.noImages("a pull that got no byte")

	c.after.Store(100 << 10)
	c.sent.Store(0)
	c.cuts.Store(0)
	d.pull(image)
	if c.cuts.Load() < 3 {
		t.Errorf("only %d connections were cut", c.cuts.Load())
	}
	resp, err := d.images.ImageStatus(d.call(), &runtime.ImageStatusRequest{Image: spec(image)})
	if err != nil || resp.Image == nil {
		t.Fatalf("status: %v, %v", resp, err)
	}
	if sent, size := c.sent.Load(), int64(resp.Image.Size); sent > size+size/2 {
		t.Errorf("%d bytes were sent for an image of %d: pulls are not resumed", sent, size)
	}
}

func (d *daemon) noImages(after string) {
	d.t.Helper()
	list, err := d.images.ListImages(d.call(), &runtime.ListImagesRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, i := range list.Images {
		d.t.Errorf("after %s there is %v", after, i)
	}
}

// TestSlowPull: a call that is cancelled ends at once and leaves nothing; another one that wants the same goes on.
func TestSlowPull(t *testing.T) {
	d := startDaemon(t, "")
	asked, proceed := make(chan struct{}, 100), make(chan struct{})
	r := images.StartWith(t, images.Options{Groups: []images.Group{images.Tour}, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/blobs/") && req.Method == http.MethodGet {
				asked <- struct{}{}
				select {
				case <-proceed:
				case <-req.Context().Done():
					return
				}
			}
			next.ServeHTTP(w, req)
		})
	}})
	image := r.Ref("pistis/tour:latest")
	pull := func(ctx context.Context) error {
		_, err := d.images.PullImage(ctx, &runtime.PullImageRequest{Image: spec(image)})
		return err
	}
	alone, giveUp := context.WithCancel(d.call())
	go func() { <-asked; giveUp() }()
	if err := pull(alone); status.Code(err) != codes.Canceled {
		t.Errorf("a cancelled pull: %v", err)
	}
	// A call that came before the daemon noticed would join what it still does.
	eventually(t, "the daemon to end the cancelled call", func() bool {
		return strings.Contains(d.logs(), "method=PullImage") && strings.Contains(d.logs(), "code=Canceled")
	})
	d.noImages("a cancelled pull")

	// Of two calls for one image the first gives up.
	first, giveUp := context.WithCancel(d.call())
	var calls sync.WaitGroup
	defer calls.Wait()
	calls.Go(func() {
		if err := pull(first); status.Code(err) != codes.Canceled {
			t.Errorf("the call that gave up: %v", err)
		}
	})
	<-asked
	second := make(chan error, 1)
	calls.Go(func() { second <- pull(d.call()) })
	giveUp()
	close(proceed)
	if err := <-second; err != nil {
		t.Errorf("the call that went on: %v", err)
	}
}

// guarded is a registry that asks for credentials: a user's name and password or, with bearer, tokens of its own.
type guarded struct {
	bearer bool
}

const (
	rightUser, rightPassword = "tester", "pass:word"
	identityToken            = "identity-token"
	registryToken            = "registry-token"
)

func (g *guarded) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		known := user == rightUser && password == rightPassword
		switch {
		case r.URL.Path == "/token":
			g.token(w, r, known)
		case !g.bearer && known, g.bearer && r.Header.Get("Authorization") == "Bearer "+registryToken:
			next.ServeHTTP(w, r)
		default:
			challenge := `Basic realm="test"`
			if g.bearer {
				challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:pistis/tour:pull"`, r.Host)
			}
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
}

// token answers as the OAuth and the older token service do.
func (g *guarded) token(w http.ResponseWriter, r *http.Request, known bool) {
	if r.Method == http.MethodPost {
		known = r.PostFormValue("refresh_token") == identityToken || r.PostFormValue("username") == rightUser && r.PostFormValue("password") == rightPassword
	}
	if !known {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": registryToken, "access_token": registryToken, "expires_in": 300})
}

// TestCredentials: each form in which CRI has them, right and wrong.
func TestCredentials(t *testing.T) {
	d := startDaemon(t, "")
	plain := base64.StdEncoding.EncodeToString
	for _, g := range []*guarded{{}, {bearer: true}} {
		r := images.StartWith(t, images.Options{Groups: []images.Group{images.Tour}, Wrap: g.wrap})
		image := r.Ref("pistis/tour:latest")
		pull := func(a *runtime.AuthConfig) error {
			_, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec(image), Auth: a})
			return err
		}
		for what, a := range map[string]*runtime.AuthConfig{
			"none":            nil,
			"a wrong user":    {Username: "nobody", Password: rightPassword},
			"a wrong auth":    {Auth: plain([]byte("tester:wrong"))},
			"a wrong id":      {IdentityToken: "wrong"},
			"a wrong token":   {RegistryToken: "wrong"},
			"another's":       {Username: rightUser, Password: rightPassword, ServerAddress: "elsewhere.test"},
			"another's token": {RegistryToken: registryToken, ServerAddress: "elsewhere.test"},
		} {
			err := pull(a)
			if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied {
				t.Errorf("bearer %t, credentials %s: code %v: %v", g.bearer, what, code, err)
			} else if !strings.Contains(err.Error(), "pull secret") || strings.Contains(err.Error(), rightPassword) {
				t.Errorf("bearer %t, credentials %s: %v", g.bearer, what, err)
			}
		}
		refused(t, "credentials that are none", pull(&runtime.AuthConfig{Auth: "?"}), codes.InvalidArgument, "base64")
		d.noImages("pulls with wrong credentials")

		right := map[string]*runtime.AuthConfig{
			"user and password": {Username: rightUser, Password: rightPassword},
			"auth":              {Auth: plain([]byte(rightUser + ":" + rightPassword))},
			"with server":       {Username: rightUser, Password: rightPassword, ServerAddress: "http://" + r.Address + "/v2/"},
		}
		if g.bearer {
			right["identity token"] = &runtime.AuthConfig{IdentityToken: identityToken}
			right["registry token"] = &runtime.AuthConfig{RegistryToken: registryToken}
		}
		for what, a := range right {
			if err := pull(a); err != nil {
				t.Errorf("bearer %t, credentials %s: %v", g.bearer, what, err)
				continue
			}
			if _, err := d.images.RemoveImage(d.call(), &runtime.RemoveImageRequest{Image: spec(image)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if strings.Contains(d.logs(), rightPassword) || strings.Contains(d.logs(), identityToken) || strings.Contains(d.logs(), registryToken) {
		t.Error("the log has a secret")
	}
}
