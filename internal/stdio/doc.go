// Package stdio carries what containers read and write: the CRI log file, the frames of an attached client, the
// fan-out to several of them, and containerd's FIFOs.
//
// A [Log] owns its file; each of its streams belongs to one goroutine. A [Fanout] owns its viewers. Nothing here
// knows of tasks or VMs, and it must not import them.
package stdio
