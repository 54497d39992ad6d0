package registry

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

// Auth is how CRI passes credentials; all forms may be empty.
type Auth struct {
	Username, Password string
	// Auth is base64 of user:password.
	Auth          string
	ServerAddress string
	IdentityToken string
	RegistryToken string
}

// Credentials for one registry.
type Credentials struct {
	user, secret string // a secret without a user is an identity token
	token        string // a registry token, sent as it is
	server       string // host that they are for; empty: the reference's
}

// ParseAuth reads the forms in which CRI passes credentials.
func ParseAuth(a Auth) (Credentials, error) {
	c := Credentials{}
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
