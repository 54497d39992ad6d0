// Package endpoint runs CRI daemons to measure and to wear out: pistisd and its peers, each with directories, a network,
// cgroups and a socket of its own, so that all are driven by the same client over plain CRI.
//
// An [Endpoint] owns its process, its directories and its cgroups; Close ends and removes them. The daemons keep some
// state in places that no configuration moves (/run/containerd, /var/lib/cni, the host's network), so that callers run in
// namespaces of their own: hack/peers.sh makes them.
//
// The methods of an Endpoint that start or end the process belong to one goroutine; the rest may be called from any. The
// package knows nothing of Pistis but its configuration and its commands.
package endpoint
