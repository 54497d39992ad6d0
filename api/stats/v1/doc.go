// Package statsv1 has the statistics that both contracts carry, the one between the host and the guest and the one between
// the daemon and the shim. Their meaning is that of the types of internal/task, which internal/stats translates them to.
package statsv1

//go:generate protoc -I../../.. --go_out=../../.. --go_opt=paths=source_relative api/stats/v1/stats.proto
