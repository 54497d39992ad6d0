package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

const dockerHub, dockerHubHost = "docker.io", "registry-1.docker.io"

// Options of Registries; all may be empty.
type Options struct {
	// HostsDir holds hosts.toml files as containerd's config_path does.
	HostsDir string
	// Mirrors maps a registry host to the URLs that are asked before it. A directory for the host in HostsDir wins.
	Mirrors map[string][]string
	// Insecure registries, as host or host:port, need no valid certificate and may speak plain HTTP. Those on
	// the loopback interface always may.
	Insecure []string
}

// Registries knows how registries are reached.
type Registries struct {
	opts    Options
	mirrors map[string][]*url.URL
}

// New checks the options.
func New(o Options) (*Registries, error) {
	r := &Registries{opts: o, mirrors: map[string][]*url.URL{}}
	for host, urls := range o.Mirrors {
		for _, raw := range urls {
			u, err := url.Parse(raw)
			if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
				return nil, fmt.Errorf("mirror of %s: %q is no http or https URL: %w", host, raw, errdefs.ErrInvalidArgument)
			}
			r.mirrors[host] = append(r.mirrors[host], u)
		}
	}
	return r, nil
}

func (r *Registries) isInsecure(host string) bool {
	for _, h := range r.opts.Insecure {
		if h == host || strings.HasPrefix(host, h+":") {
			return true
		}
	}
	return false
}

// Session is one pull's connections to its registry.
type Session struct {
	r          *Registries
	ctx        context.Context // of the connections' log
	creds      Credentials
	found      []docker.RegistryHost
	transports []*http.Transport
}

// Session begins a pull with credentials.
func (r *Registries) Session(ctx context.Context, creds Credentials) *Session {
	return &Session{r: r, ctx: ctx, creds: creds}
}

// Close ends the connections.
func (c *Session) Close() {
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Hosts says where images of a registry are got from, in order: the mirrors, then the registry itself. A session has
// one registry, and logs in there once.
func (c *Session) Hosts(registry string) ([]docker.RegistryHost, error) {
	if c.found != nil {
		return c.found, nil
	}
	hosts, err := c.findHosts(registry)
	c.found = hosts
	return hosts, err
}

func (c *Session) findHosts(registry string) ([]docker.RegistryHost, error) {
	own := &hostSet{only: c.creds.server}
	own.add(registry)
	opts := config.HostOptions{
		Credentials:  func(host string) (string, string, error) { return c.login(own, host) },
		UpdateClient: c.remember,
	}
	configured := false
	if c.r.opts.HostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(c.r.opts.HostsDir)
		dir, err := opts.HostDir(registry)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("hosts directory: %w", err)
		}
		if configured = dir != ""; configured {
			if err := checkHostsFile(filepath.Join(dir, "hosts.toml")); err != nil {
				return nil, err
			}
		}
	}
	if c.r.isInsecure(registry) {
		opts.DefaultScheme = "http"
		opts.DefaultTLS = &tls.Config{InsecureSkipVerify: true}
	}
	hosts, err := config.ConfigureHosts(c.ctx, opts)(registry)
	if err != nil {
		return nil, fmt.Errorf("registry %s: configuration: %w: %w", registry, err, errdefs.ErrFailedPrecondition)
	}
	if len(hosts) > 0 {
		own.add(hosts[len(hosts)-1].Host) // the server itself, where hosts.toml names another
	}
	if !configured {
		mirrors, err := c.mirrors(registry, opts.Credentials)
		if err != nil {
			return nil, err
		}
		hosts = append(mirrors, hosts...)
	}
	if c.creds.token != "" {
		for i := range hosts {
			hosts[i].Authorizer = &tokenAuthorizer{token: c.creds.token, hosts: own, next: hosts[i].Authorizer}
		}
	}
	return hosts, nil
}

// mirrors of the configuration's table.
func (c *Session) mirrors(registry string, login func(string) (string, string, error)) ([]docker.RegistryHost, error) {
	var hosts []docker.RegistryHost
	for _, u := range c.r.mirrors[registry] {
		client := &http.Client{Transport: docker.DefaultHTTPTransport(&tls.Config{InsecureSkipVerify: c.r.isInsecure(u.Host)})}
		if err := c.remember(client); err != nil {
			return nil, err
		}
		path := strings.TrimSuffix(u.Path, "/")
		if !strings.HasSuffix(path, "/v2") {
			path += "/v2"
		}
		hosts = append(hosts, docker.RegistryHost{
			Client: client, Scheme: u.Scheme, Host: u.Host, Path: path,
			Authorizer:   docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(login)),
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		})
	}
	return hosts, nil
}

// remember keeps a client's transport, to close its idle connections in the end.
func (c *Session) remember(client *http.Client) error {
	if t, ok := client.Transport.(*http.Transport); ok {
		c.transports = append(c.transports, t)
	}
	return nil
}

// login gives out the credentials to the registry that they are for, and to no mirror.
func (c *Session) login(own *hostSet, host string) (user, secret string, err error) {
	if !own.has(host) {
		return "", "", nil
	}
	return c.creds.user, c.creds.secret, nil
}

// hostSet are the hosts that credentials are for.
type hostSet struct {
	only  string
	hosts []string
}

func (h *hostSet) add(host string) {
	if host == dockerHub {
		host = dockerHubHost
	}
	h.hosts = append(h.hosts, host)
}

func (h *hostSet) has(host string) bool {
	if h.only != "" {
		return host == h.only
	}
	for _, own := range h.hosts {
		if own == host {
			return true
		}
	}
	return false
}

// tokenAuthorizer sends a registry token as it is, to the registry alone.
type tokenAuthorizer struct {
	token string
	hosts *hostSet
	next  docker.Authorizer // for all others
}

func (t *tokenAuthorizer) Authorize(ctx context.Context, req *http.Request) error {
	if t.hosts.has(req.URL.Host) {
		req.Header.Set("Authorization", "Bearer "+t.token)
		return nil
	}
	return t.next.Authorize(ctx, req)
}

func (t *tokenAuthorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	if t.hosts.has(responses[len(responses)-1].Request.URL.Host) {
		return fmt.Errorf("registry token: %w", docker.ErrInvalidAuthorization)
	}
	return t.next.AddResponses(ctx, responses)
}

// checkHostsFile refuses a hosts.toml that is no TOML. The loader would log that and go on without the file.
func checkHostsFile(path string) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	var any map[string]any
	if err := toml.Unmarshal(raw, &any); err != nil {
		return fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}
