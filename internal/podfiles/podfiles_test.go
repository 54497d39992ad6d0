package podfiles

import (
	"strings"
	"testing"

	"github.com/pistis-run/pistis/internal/sandbox"
)

func TestResolvConf(t *testing.T) {
	asked := sandbox.DNS{Servers: []string{"1.1.1.1"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}}
	if got, err := ResolvConf(&asked, sandbox.DNS{Servers: []string{"2.2.2.2"}}); err != nil || string(got) != "search a b\nnameserver 1.1.1.1\noptions ndots:5\n" {
		t.Errorf("asked: %q, %v", got, err)
	}
	if got, err := ResolvConf(&sandbox.DNS{}, sandbox.DNS{Servers: []string{"2.2.2.2"}}); err != nil || string(got) != "nameserver 2.2.2.2\n" {
		t.Errorf("network: %q, %v", got, err)
	}
	if got, found := withoutLoopback([]byte("# x\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch a\nnameserver ::1\nnameserver bad\n")); !found || string(got) != "# x\nnameserver 9.9.9.9\nsearch a\n" {
		t.Errorf("host: %q, %v", got, found)
	}
	if _, found := withoutLoopback([]byte("nameserver 127.0.0.53\n")); found {
		t.Error("a loopback server was found usable")
	}
}

func TestHosts(t *testing.T) {
	if got := string(Hosts("", []string{"10.0.0.2"})); strings.Contains(got, "10.0.0.2") || !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("without a host name: %q", got)
	}
	if got := string(Hosts("web", []string{"10.0.0.2", "fd00::2"})); !strings.HasSuffix(got, "10.0.0.2\tweb\nfd00::2\tweb\n") {
		t.Errorf("with two addresses: %q", got)
	}
}
