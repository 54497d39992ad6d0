package image

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/image/registry"
)

// needBasic lets only alice in.
func needBasic(w http.ResponseWriter, req *http.Request) bool {
	user, password, _ := req.BasicAuth()
	if user == "alice" && password == "secret:word" {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
	return true
}

// needToken is a registry with a token server beside it, at /token.
func needToken(host string) func(w http.ResponseWriter, req *http.Request) bool {
	return func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/token" {
			user, password, _ := req.BasicAuth()
			_ = req.ParseForm()
			ok := (user == "alice" && password == "secret:word") ||
				(req.PostForm.Get("username") == "alice" && req.PostForm.Get("password") == "secret:word") || req.PostForm.Get("refresh_token") == "identity"
			if !ok {
				http.Error(w, "no", http.StatusUnauthorized)
				return true
			}
			fmt.Fprint(w, `{"token":"bearer","access_token":"bearer"}`)
			return true
		}
		if req.Header.Get("Authorization") == "Bearer bearer" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+host+`/token",service="test",scope="repository:app:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func TestPullAuth(t *testing.T) {
	r := newRegistry(t)
	ref := r.push(t, "app:1", makeImage(t, thisArch, "one"))
	encoded := base64.StdEncoding.EncodeToString([]byte("alice:secret:word"))
	tests := []struct {
		name   string
		server func(w http.ResponseWriter, req *http.Request) bool
		auth   *Auth
		ok     bool
	}{
		{"password", needBasic, &Auth{Username: "alice", Password: "secret:word"}, true},
		{"base64", needBasic, &Auth{Auth: encoded}, true},
		{"for this server", needBasic, &Auth{Auth: encoded, ServerAddress: "http://" + r.host + "/v1"}, true},
		{"for another server", needBasic, &Auth{Auth: encoded, ServerAddress: "elsewhere.example"}, false},
		{"wrong password", needBasic, &Auth{Username: "alice", Password: "wrong"}, false},
		{"none", needBasic, nil, false},
		{"password for a token", needToken(r.host), &Auth{Username: "alice", Password: "secret:word"}, true},
		{"wrong password for a token", needToken(r.host), &Auth{Username: "alice", Password: "wrong"}, false},
		{"identity token", needToken(r.host), &Auth{IdentityToken: "identity"}, true},
		{"wrong identity token", needToken(r.host), &Auth{IdentityToken: "wrong"}, false},
		{"registry token", needToken(r.host), &Auth{RegistryToken: "bearer"}, true},
		{"wrong registry token", needToken(r.host), &Auth{RegistryToken: "wrong"}, false},
		{"no token", needToken(r.host), nil, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := openService(t)
			r.setIntercept(test.server)
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: test.auth})
			switch {
			case test.ok && err != nil:
				t.Errorf("got %v", err)
			case !test.ok && !errdefs.IsUnauthorized(err):
				t.Errorf("got %v, want Unauthenticated", err)
			case err != nil && (strings.Contains(err.Error(), "secret:word") || strings.Contains(err.Error(), encoded)):
				t.Errorf("the message tells a secret: %v", err)
			}
		})
	}
	s := openService(t)
	for _, auth := range []Auth{{Auth: "not base64!"}, {Auth: base64.StdEncoding.EncodeToString([]byte("nocolon"))}, {Username: "x", ServerAddress: "http://%%"}} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: &auth}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", auth, err)
		}
	}
	r.setIntercept(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "no", http.StatusForbidden)
		return true
	})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("forbidden: %v", err)
	}
	r.setIntercept(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "no", http.StatusBadGateway)
		return true
	})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsUnavailable(err) {
		t.Errorf("bad gateway: %v", err)
	}
}

// TestPullMirrors: mirrors are asked first, the registry after them, and credentials go to the registry alone.
func TestPullMirrors(t *testing.T) {
	own, mirror := newRegistry(t), newRegistry(t)
	img := makeImage(t, thisArch, "one")
	ref := own.push(t, "app:1", img)
	mirror.push(t, "app:1", img)
	_, _, ids := digests(t, img)
	var leaked atomic.Bool
	mirror.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if _, _, ok := req.BasicAuth(); ok {
			leaked.Store(true)
		}
		return needBasic(w, req)
	})
	auth := &Auth{Username: "alice", Password: "secret:word"}
	s := openService(t, func(o *Options) { o.Registries.Mirrors = map[string][]string{own.host: {mirror.URL}} })
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: auth}); err != nil {
		t.Fatal(err)
	}
	if leaked.Load() || own.blobRequests(ids[0]) != 1 {
		t.Errorf("leaked %v, asked the registry %d times", leaked.Load(), own.blobRequests(ids[0]))
	}
	mirror.setIntercept(nil)
	for name, change := range map[string]func(*Options){
		"table": func(o *Options) { o.Registries.Mirrors = map[string][]string{"registry.example": {mirror.URL + "/"}} },
		"hosts.toml": func(o *Options) {
			dir := filepath.Join(t.TempDir(), "registry.example")
			toml := "server = \"https://registry.example\"\n[host.\"" + mirror.URL + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644)); err != nil {
				t.Fatal(err)
			}
			o.Registries.HostsDir = filepath.Dir(dir)
		},
	} {
		s := openService(t, change)
		if img := mustPull(t, s, "registry.example/app:1"); img.Tags[0] != "registry.example/app:1" {
			t.Errorf("%s: %v", name, img.Tags)
		}
	}
	broken := filepath.Join(t.TempDir(), "registry.example")
	if err := errors.Join(os.MkdirAll(broken, 0o755), os.WriteFile(filepath.Join(broken, "hosts.toml"), []byte("= ="), 0o644)); err != nil {
		t.Fatal(err)
	}
	s = openService(t, func(o *Options) { o.Registries.HostsDir = filepath.Dir(broken) })
	if _, err := s.Pull(t.Context(), PullRequest{Ref: "registry.example/app:1"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("broken hosts.toml: %v", err)
	}
	if _, err := Open(t.Context(), Options{Root: t.TempDir(), Registries: registry.Options{Mirrors: map[string][]string{"a": {"no url"}}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("broken mirror: %v", err)
	}
}

// TestPullTLS: a registry with a certificate of its own needs hosts.toml to name it; on loopback that is not asked for.
func TestPullTLS(t *testing.T) {
	r := startRegistry(t, (*httptest.Server).StartTLS)
	ref := r.push(t, "app:1", makeImage(t, thisArch, "one"))
	mustPull(t, openService(t), ref)
	dir := filepath.Join(t.TempDir(), "registry.example")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	toml := "[host.\"" + r.URL + "\"]\n  ca = \"ca.pem\"\n"
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o644), os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644)); err != nil {
		t.Fatal(err)
	}
	mustPull(t, openService(t, func(o *Options) { o.Registries.HostsDir = filepath.Dir(dir) }), "registry.example/app:1")
	s := openService(t, func(o *Options) { o.Registries.Mirrors = map[string][]string{"registry.example": {r.URL}} })
	if _, err := s.Pull(t.Context(), PullRequest{Ref: "registry.example/app:1"}); !errdefs.IsUnavailable(err) {
		t.Errorf("unknown certificate: %v", err)
	}
}
