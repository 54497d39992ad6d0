// Package nri lets plugins of the Node Resource Interface take part in the life of pods and containers: they are told of
// it, and change containers that are created or updated.
//
// State: [Plugins] owns the socket at which plugins connect, and the plugins that it starts. Plugins know pods and
// containers from being told; one that connects later is told of all that there are. They run as root beside the
// daemon, and are trusted: what they ask for is refused where it cannot be honoured, not where it is unwise.
//
// Concurrency: all methods may be called from any goroutine. Plugins are asked one call at a time, as NRI does it.
//
// It must not import cri.
package nri
