// Package daemon puts pistisd together: it opens the engine's parts, connects them, serves them, and takes them
// down again in the reverse order. Pods outlive it.
//
// [Run] owns everything that it opens until it returns. Two daemons cannot share a root or a run directory: each is
// locked. The package is the only one besides cmd that knows the mechanisms and the CRI server at once; nothing
// imports it but cmd/pistisd.
package daemon
