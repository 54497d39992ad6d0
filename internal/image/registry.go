package image

import (
	"context"
	"crypto/tls"
	"encoding/base64"
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

// credentials for one registry.
type credentials struct {
	user, secret string // a secret without a user is an identity token
	token        string // a registry token, sent as it is
	server       string // host that they are for; empty: the reference's
}

// parseAuth reads the forms in which CRI passes credentials.
func parseAuth(a Auth) (credentials, error) {
	c := credentials{}
	if a.ServerAddress != "" {
		host, err := serverHost(a.ServerAddress)
		if err != nil {
			return c, err
		}
		c.server = host
	}
	switch {
	case a.Username != "":
		c.user, c.secret = a.Username, a.Password
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.RegistryToken != "":
		c.token = a.RegistryToken
	case a.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return c, fmt.Errorf("credentials: auth is no base64 of user:password: %w", errdefs.ErrInvalidArgument)
		}
		user, secret, ok := strings.Cut(string(raw), ":")
		if !ok || user == "" {
			return c, fmt.Errorf("credentials: auth holds no user:password: %w", errdefs.ErrInvalidArgument)
		}
		c.user, c.secret = user, strings.TrimRight(secret, "\x00")
	}
	return c, nil
}

// serverHost takes the host out of a server address, which may be a URL.
func serverHost(address string) (string, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("credentials: server address is neither a host nor a URL: %w", errdefs.ErrInvalidArgument)
	}
	switch u.Host {
	case dockerHub, "index." + dockerHub:
		return dockerHubHost, nil
	}
	return u.Host, nil
}

// hosts says where images of a registry are got from, in order: the mirrors, then the registry itself. A session has
// one registry, and logs in there once.
func (c *session) hosts(registry string) ([]docker.RegistryHost, error) {
	if c.registry != nil {
		return c.registry, nil
	}
	hosts, err := c.findHosts(registry)
	c.registry = hosts
	return hosts, err
}

func (c *session) findHosts(registry string) ([]docker.RegistryHost, error) {
	own := &hostSet{only: c.creds.server}
	own.add(registry)
	opts := config.HostOptions{
		Credentials:  func(host string) (string, string, error) { return c.login(own, host) },
		UpdateClient: c.remember,
	}
	configured := false
	if c.s.opts.HostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(c.s.opts.HostsDir)
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
	if c.s.isInsecure(registry) {
		opts.DefaultScheme = "http"
		opts.DefaultTLS = &tls.Config{InsecureSkipVerify: true}
	}
	hosts, err := config.ConfigureHosts(c.s.ctx, opts)(registry)
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
func (c *session) mirrors(registry string, login func(string) (string, string, error)) ([]docker.RegistryHost, error) {
	var hosts []docker.RegistryHost
	for _, u := range c.s.mirrors[registry] {
		client := &http.Client{Transport: docker.DefaultHTTPTransport(&tls.Config{InsecureSkipVerify: c.s.isInsecure(u.Host)})}
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
func (c *session) remember(client *http.Client) error {
	if t, ok := client.Transport.(*http.Transport); ok {
		c.transports = append(c.transports, t)
	}
	return nil
}

// login gives out the credentials to the registry that they are for, and to no mirror.
func (c *session) login(own *hostSet, host string) (user, secret string, err error) {
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
