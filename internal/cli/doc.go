// Package cli is the operator's command, pistis.
//
// It speaks CRI through the kubelet's own remote client, and api/pistis/v1 on the same socket for what CRI has no
// words for. It owns no state: a pod that `pistis run` makes is a CRI sandbox with one container, marked by
// labels, and everything else is read from the daemon. Commands print tables for people and, with -o json, the
// daemon's answers as they are.
//
// It must not import the daemon's engine: what it can do, any CRI client can.
package cli
