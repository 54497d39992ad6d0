package guestimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

// onDemand are the modules that a pod may cause its guest's kernel to load, beside those that a guest starts with, as
// patterns of their files. They and what they need make the modules disk; what is not on it cannot be loaded. Each is
// code that a hostile pod can reach in its own kernel: a protocol or a driver that no pod is known to want is not here.
var onDemand = []string{
	// Firewalls, load balancing and shaping: service meshes and network plugins.
	"net/netfilter/*", "net/netfilter/ipset/*", "net/netfilter/ipvs/*",
	"net/ipv4/netfilter/*", "net/ipv6/netfilter/*", "net/bridge/*", "net/bridge/netfilter/*",
	"net/sched/*", "net/core/*",
	// Links and tunnels.
	"drivers/net/tun.*", "drivers/net/tap.*", "drivers/net/veth.*", "drivers/net/dummy.*", "drivers/net/ifb.*", "drivers/net/macvlan.*",
	"drivers/net/macvtap.*", "drivers/net/ipvlan/*", "drivers/net/vxlan/*", "drivers/net/vxlan.*", "drivers/net/geneve.*", "drivers/net/gtp.*",
	"drivers/net/wireguard/*", "drivers/net/bonding/*", "drivers/net/vrf.*", "drivers/net/nlmon.*", "drivers/net/macsec.*",
	"net/8021q/*", "net/openvswitch/*", "net/mpls/*",
	"net/ipv4/*", "net/ipv6/*", "net/key/*", "net/xfrm/*", "net/l2tp/*", "net/sctp/*", "net/tls/*",
	// What ss(8) and tcpdump(8) use.
	"net/netlink/*", "net/packet/*", "net/unix/*",
	// File systems over the network, from disks and from images.
	"fs/nfs/*", "fs/nfs/*/*", "fs/nfs_common/*", "fs/lockd/*", "net/sunrpc/sunrpc.*", "net/sunrpc/auth_gss/*", "net/dns_resolver/*",
	"fs/smb/client/*", "fs/smb/common/*", "fs/cifs/*", "fs/smbfs_common/*", "fs/ceph/*", "fs/fscache/*", "fs/netfs/*",
	"fs/xfs/*", "fs/btrfs/*", "fs/fat/*", "fs/exfat/*", "fs/isofs/*", "fs/udf/*", "fs/squashfs/*", "fs/erofs/*", "fs/nls/*", "fs/binfmt_misc.*",
	"drivers/block/loop.*", "drivers/block/nbd.*", "drivers/md/dm-*",
	// Memory in common with the host, which the agent asks for (internal/transport).
	"drivers/nvdimm/virtio_pmem.*", "drivers/nvdimm/nd_pmem.*",
	// Algorithms that the above ask for by name.
	"crypto/*", "arch/*/crypto/*", "lib/crypto/*", "lib/*",
}

// notOnDemand are among the above and stay out: sockets for algorithms that the kernel's own users do not need.
var notOnDemand = []string{"crypto/af_alg.*", "crypto/algif_*"}

// busAliases begin the aliases that name hardware.
var busAliases = []string{"pci:", "usb:", "acpi", "of:", "virtio:", "platform:", "i2c:", "hid:", "cpu:", "scsi:", "serio:", "vmbus:", "pnp:", "dmi"}

// onDemand returns the modules of the disk, dependencies included.
func (s *moduleSet) onDemand() ([]module, error) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.paths)) {
		// A file is below kernel/, and updates/ has what replaces it.
		_, file, _ := strings.Cut(s.paths[name], "/")
		matches := func(pattern string) bool {
			ok, err := path.Match(pattern, file)
			return err == nil && ok
		}
		if slices.ContainsFunc(onDemand, matches) && !slices.ContainsFunc(notOnDemand, matches) {
			names = append(names, name)
		}
	}
	return s.closure(names)
}

// writeModules writes an ext4 image with modules and their index, as internal/agent/modules reads it.
func writeModules(file string, modules []module) (err error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name string, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	index, err := moduleIndex(modules)
	if err != nil {
		return fmt.Errorf("modules disk: %w", err)
	}
	errs := []error{add("index", index)}
	for _, m := range modules {
		errs = append(errs, add(m.path, m.data))
	}
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return fmt.Errorf("modules disk: %w", err)
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("modules disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := tar2ext4.ConvertTarToExt4(&archive, f); err != nil {
		return fmt.Errorf("modules disk: %w", err)
	}
	// A disk has whole sectors.
	end, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = f.Truncate((end + 4095) / 4096 * 4096)
	}
	if err != nil {
		return fmt.Errorf("modules disk: %w", err)
	}
	return f.Sync()
}

func moduleIndex(modules []module) ([]byte, error) {
	names := map[string]bool{}
	for _, m := range modules {
		name, _ := trimModule(m.path)
		names[name] = true
	}
	var b bytes.Buffer
	for _, m := range modules {
		name, _ := trimModule(m.path)
		info, err := parseModinfo(m.data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.path, err)
		}
		fmt.Fprintf(&b, "module %s %s", name, filepath.ToSlash(m.path))
		for _, needed := range slices.Concat(info.softdeps, info.depends) {
			if needed = canonical(needed); names[needed] { // others are built in, or started with
				fmt.Fprintf(&b, " %s", needed)
			}
		}
		b.WriteByte('\n')
		for _, a := range info.aliases {
			if strings.ContainsAny(a, " \t\n") || slices.ContainsFunc(busAliases, func(bus string) bool { return strings.HasPrefix(a, bus) }) {
				continue
			}
			fmt.Fprintf(&b, "alias %s %s\n", canonicalPattern(a), name)
		}
	}
	return b.Bytes(), nil
}

// canonicalPattern is canonical for a pattern: in brackets a '-' says something else.
func canonicalPattern(pattern string) string {
	b := []byte(pattern)
	inside := false
	for i, c := range b {
		switch {
		case c == '[' || c == ']':
			inside = c == '['
		case c == '-' && !inside:
			b[i] = '_'
		}
	}
	return string(b)
}
