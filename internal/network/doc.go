// Package network gives pods their network: a pinned namespace, and in it the interfaces that a CNI plugin set or the
// built-in bridge makes.
//
// State and its owners: [CNI] keeps libcni's result cache below its state directory, and the plugins keep their own.
// [Bridge] owns a bridge device, one nftables table named after it, its rules in the iptables FORWARD chains, and a
// ledger file of addresses and host ports, which a lock file keeps to one process at a time. [Node] has one of each
// and decides per pod. The namespaces' pins belong to the caller.
//
// All methods may be called concurrently for different pods; calls for one pod must be ordered by the caller. What a
// set-up made is on disk before the set-up returns, so that a daemon that was killed can tear down, and Reconcile
// finds what no record speaks of.
//
// The VM shim's part is in network/tap; the package must not import it, nor anything above (sandbox, container, cri).
package network
