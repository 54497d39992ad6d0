// Package firewall has the packet filter's part of the built-in bridge: its own nftables table, which translates addresses
// and guards pods, and the two rules that let its packets pass an iptables FORWARD chain, be it nftables' or of the old iptables,
// which Docker sets to drop.
//
// The kernel holds all state; what there is to be comes with each call. Calls for one bridge must be ordered by the
// caller. The package knows nothing of pods and imports nothing of ours but log keys.
package firewall
