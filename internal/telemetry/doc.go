// Package telemetry is what a daemon shows of itself to monitoring systems: counts for Prometheus, and traces for an
// OpenTelemetry collector.
//
// [Metrics] are counted by hooks that the daemon's wiring puts into the parts, and looked up when they are asked for; the
// parts know nothing of this package. It owns the listener of the metrics. It must not import the engine's packages.
package telemetry
