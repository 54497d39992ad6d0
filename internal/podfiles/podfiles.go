package podfiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/pistis-run/pistis/internal/sandbox"
)

const (
	hostResolvConf = "/etc/resolv.conf"
	// systemdResolvConf has the servers behind systemd-resolved's own on a loopback address.
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
	maxResolvConf     = 64 << 10
)

// Hosts is the pod's /etc/hosts: the loopback addresses, and the pod's own under its host name where it has one.
func Hosts(hostname string, ips []string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if hostname == "" {
		return b.Bytes()
	}
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return b.Bytes()
}

// ResolvConf is the pod's /etc/resolv.conf: what the pod asks for, else what its network says, else the host's without name
// servers that only the host reaches.
func ResolvConf(pod *sandbox.DNS, network sandbox.DNS) ([]byte, error) {
	if pod != nil && !isEmpty(*pod) {
		return formatDNS(*pod), nil
	}
	if len(network.Servers) > 0 {
		return formatDNS(network), nil
	}
	host, err := readBounded(hostResolvConf)
	if err != nil {
		return nil, err
	}
	if usable, found := withoutLoopback(host); found {
		return usable, nil
	}
	upstream, err := readBounded(systemdResolvConf)
	if err != nil {
		return nil, err
	}
	if usable, found := withoutLoopback(upstream); found {
		return usable, nil
	}
	usable, _ := withoutLoopback(host)
	return usable, nil
}

func isEmpty(d sandbox.DNS) bool {
	return len(d.Servers) == 0 && len(d.Searches) == 0 && len(d.Options) == 0
}

func formatDNS(d sandbox.DNS) []byte {
	var b bytes.Buffer
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, server := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.Bytes()
}

// withoutLoopback drops name servers that only the host itself reaches; found says whether others are left.
func withoutLoopback(conf []byte) (usable []byte, found bool) {
	var b bytes.Buffer
	for line := range strings.Lines(string(conf)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == "nameserver" {
			addr, err := netip.ParseAddr(fields[1])
			if err != nil || addr.IsLoopback() {
				continue
			}
			found = true
		}
		b.WriteString(line)
	}
	return b.Bytes(), found
}

// readBounded reads a small file; one that does not exist is empty.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("name servers of the host: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil, fmt.Errorf("name servers of the host: %w", err)
	}
	return data, nil
}
