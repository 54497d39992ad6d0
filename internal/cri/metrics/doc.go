// Package metrics turns statistics into the metrics of CRI, which have cAdvisor's names.
//
// One table has a row for each metric: its descriptor, and how it is read from a pod's or a container's statistics. So
// what is described and what is sent cannot differ. What was not measured is not sent. Values are whole numbers, because
// CRI's are; what is counted in seconds is rounded down.
//
// The package holds no state.
package metrics
