package network

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxAlias is the longest alias of an interface, in bytes (IFALIASZ without the final zero).
const maxAlias = 255

// bridgeMark says, in a bridge's alias, whose bridge it is. Daemons with different directories know nothing of each
// other's ledgers and locks, but they see the same interfaces: without a mark two of them would give their pods the same
// addresses, and each would remove the other's.
type bridgeMark struct {
	id  string // of the directory that the ledger lies in; unlike its path it is the same in every mount namespace
	dir string
}

func markOf(dir string) (bridgeMark, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return bridgeMark{}, fmt.Errorf("%s: %w", dir, err)
	}
	return bridgeMark{id: fmt.Sprintf("%x:%x", st.Dev, st.Ino), dir: dir}, nil
}

func (m bridgeMark) alias() string {
	alias := "pistis " + m.id + " " + m.dir
	return alias[:min(len(alias), maxAlias)]
}

// check refuses a bridge that is marked as another daemon's. One without a mark is nobody's yet.
func (m bridgeMark) check(link netlink.Link) error {
	alias := link.Attrs().Alias
	rest, marked := strings.CutPrefix(alias, "pistis ")
	if id, dir, _ := strings.Cut(rest, " "); marked && id != m.id {
		return fmt.Errorf("bridge %s belongs to the pistisd that keeps its addresses in %s (configure another name and other networks for this one's bridge; "+
			"where that daemon is gone for good, remove the interface): %w", link.Attrs().Name, dir, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// checkName is check for the bridge of a name, which need not be there.
func (m bridgeMark) checkName(name string) error {
	link, err := findLink(name)
	if err != nil || link == nil {
		return err
	}
	return m.check(link)
}

// take makes the bridge ours, unless it is another daemon's.
func (m bridgeMark) take(link netlink.Link) error {
	if err := m.check(link); err != nil || link.Attrs().Alias == m.alias() {
		return err
	}
	if err := netlink.LinkSetAlias(link, m.alias()); err != nil {
		return fmt.Errorf("mark bridge %s: %w", link.Attrs().Name, err)
	}
	return nil
}
