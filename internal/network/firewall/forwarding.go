package firewall

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/pistis-run/pistis/internal/logfields"
)

// forwardChain is where iptables-nft keeps what "iptables -P FORWARD DROP" and its like say. Docker sets that policy.
// A verdict "accept" in a table of ours would not help: a packet must pass the chains of all tables. So the bridge has
// two rules at the top of this chain, as iptables would have put them there.
const (
	forwardTable = "filter"
	forwardChain = "FORWARD"
)

// OpenForwarding lets packets from and to the bridge pass the iptables FORWARD chains where there are any, and warns,
// once each, of other things that may drop them and that it must not change.
type OpenForwarding struct {
	Bridge string
	Log    *slog.Logger
	warned sync.Map // of warnings given
	old    sync.Map // of tools, by their paths: whether they are the old ones
	seen   sync.Map // digests of the old iptables' tables that had the rules, by their names
}

// comment marks the rules, for people and for Remove.
func (o *OpenForwarding) comment() string { return "pistis bridge " + o.Bridge }

// Ensure adds the rules where they are missing.
func (o *OpenForwarding) Ensure() error {
	conn, chains, err := baseChains()
	if err != nil {
		return err
	}
	for _, chain := range chains {
		switch {
		case chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookForward:
		case isIPTablesForward(chain):
			if err := o.open(conn, chain); err != nil {
				return err
			}
		case chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop:
			o.warn(fmt.Sprintf("the nftables chain %s %s (family %d) drops what it does not accept: let it accept the interface %s in both directions",
				chain.Table.Name, chain.Name, chain.Table.Family, o.Bridge))
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("accept packets of %s in the iptables FORWARD chain: %w", o.Bridge, err)
	}
	return o.ensureLegacy()
}

// open adds what is missing in chain to the transaction.
func (o *OpenForwarding) open(conn *nftables.Conn, chain *nftables.Chain) error {
	mine, err := o.rules(conn, chain)
	if err != nil {
		return err
	}
	if len(mine) == 2 {
		return nil
	}
	for _, rule := range mine {
		if err := conn.DelRule(rule); err != nil {
			return fmt.Errorf("remove a rule of the iptables FORWARD chain: %w", err)
		}
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		conn.InsertRule(&nftables.Rule{
			Table: chain.Table, Chain: chain,
			Exprs: slices.Concat(interfaceMatch(key, o.Bridge), []expr.Any{
				&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
			}),
			UserData: userdata.AppendString(nil, userdata.TypeComment, o.comment()),
		})
	}
	return nil
}

// interfaceMatch compares the name as iptables does, up to and with its final zero.
func interfaceMatch(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg128},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg128, Data: append([]byte(name), 0)},
	}
}

// rules finds the bridge's rules in chain.
func (o *OpenForwarding) rules(conn *nftables.Conn, chain *nftables.Chain) ([]*nftables.Rule, error) {
	all, err := conn.GetRules(chain.Table, chain)
	if err != nil {
		return nil, fmt.Errorf("list the iptables FORWARD chain: %w", err)
	}
	comment := userdata.AppendString(nil, userdata.TypeComment, o.comment())
	return slices.DeleteFunc(all, func(r *nftables.Rule) bool { return !bytes.Equal(r.UserData, comment) }), nil
}

// Remove takes the rules away.
func (o *OpenForwarding) Remove() error {
	conn, chains, err := baseChains()
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if !isIPTablesForward(chain) {
			continue
		}
		mine, err := o.rules(conn, chain)
		if err != nil {
			return err
		}
		for _, rule := range mine {
			if err := conn.DelRule(rule); err != nil {
				return fmt.Errorf("remove a rule of the iptables FORWARD chain: %w", err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove the rules of %s from the iptables FORWARD chain: %w", o.Bridge, err)
	}
	return o.removeLegacy()
}

func (o *OpenForwarding) warn(reason string) {
	if _, said := o.warned.LoadOrStore(reason, true); !said {
		o.Log.Warn("bridge network: packets of pods may be dropped", logfields.Reason, reason)
	}
}

func baseChains() (*nftables.Conn, []*nftables.Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, nil, fmt.Errorf("list nftables chains: %w", err)
	}
	return conn, slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Type == "" }), nil
}

func isIPTablesForward(c *nftables.Chain) bool {
	return c.Table.Name == forwardTable && c.Name == forwardChain &&
		(c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyIPv6)
}
