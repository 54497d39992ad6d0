package integration

import (
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// proxy forwards what it is asked for to one registry, whatever the host is called, and notes it.
type proxy struct {
	*httptest.Server
	tls      string // address of the registry's TLS side
	mu       sync.Mutex
	requests []string
}

func startProxy(t *testing.T, registry *url.URL, tls string) *proxy {
	t.Helper()
	p := &proxy{tls: tls}
	plain := httputil.NewSingleHostReverseProxy(registry)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.note(r.Method + " " + r.Host)
		if r.Method == http.MethodConnect {
			p.tunnel(t, w)
			return
		}
		plain.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) note(request string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, request)
}

func (p *proxy) saw(request string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.requests, request)
}

// tunnel connects the client with the registry until one of them has enough.
func (p *proxy) tunnel(t *testing.T, w http.ResponseWriter) {
	server, err := net.Dial("tcp", p.tls)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	w.WriteHeader(http.StatusOK)
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	done := make(chan struct{}, 2)
	for _, ends := range [][2]net.Conn{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(ends[0], ends[1])
			done <- struct{}{}
		}()
	}
	<-done
}

// writeFile makes a file with the directories above it.
func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestProxy: pulls go through the proxies of the daemon's environment, but for the hosts that it excepts.
func TestProxy(t *testing.T) {
	needs(t)
	target, err := url.Parse("http://" + registry(t))
	if err != nil {
		t.Fatal(err)
	}
	secure := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(target)) // its certificate is for example.com
	t.Cleanup(secure.Close)
	p := startProxy(t, target, secure.Listener.Addr().String())
	d := startPrepared(t, "", func(d *daemon) {
		hosts, ca := t.TempDir(), filepath.Join(t.TempDir(), "ca.crt")
		writeFile(t, ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}))
		writeFile(t, filepath.Join(hosts, "example.com", "hosts.toml"), fmt.Appendf(nil, "ca = %q\n", ca))
		writeFile(t, filepath.Join(hosts, "plain.test", "hosts.toml"), []byte("server = \"http://plain.test\"\n"))
		d.configure(func(s string) string {
			return strings.Replace(s, "[image.mirrors]", fmt.Sprintf("[image]\nhosts_dir = %q\n[image.mirrors]", hosts), 1)
		})
		d.env = []string{"HTTP_PROXY=" + p.URL, "HTTPS_PROXY=" + p.URL, "NO_PROXY=direct.test,.invalid"}
	})
	// The images are one: what is fetched depends on which comes first, that its tag is asked for does not.
	for image, request := range map[string]string{
		"plain.test/pistis/tour:latest":  "HEAD plain.test",
		"example.com/pistis/tour:latest": "CONNECT example.com:443",
	} {
		d.pull(image)
		if !p.saw(request) {
			t.Errorf("%s came without %q", image, request)
		}
	}
	_, err = d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec("direct.test/pistis/tour:latest")})
	if err == nil || p.saw("CONNECT direct.test:443") {
		t.Errorf("a host that needs no proxy was asked by one: %v", err)
	}
	p.Close()
	_, err = d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec("plain.test/pistis/index:latest")})
	if status.Code(err) != codes.Unknown || !strings.Contains(err.Error(), "proxy") {
		t.Errorf("a proxy that is not there: %v", err)
	}
}
