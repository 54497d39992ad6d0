// Package agent is the guest's side of api/agent/v1: it makes the guest a pod and runs the pod's containers.
//
// An [Agent] owns the tables of containers and processes. A process is in one state at a time (see process.go);
// a call that changes it claims a passing state first, so that no lock is held over the work, and a second
// call on the same process is refused meanwhile. What a failed call had made is undone before it returns.
// All methods may be called from any goroutine.
//
// How a container is executed is behind the small interface runtime; root file systems, stdio, users, control
// groups and the network have packages of their own below this one. It must not import grpc beyond codes and
// status, Kubernetes, containerd's core or net/http: the agent's size has a budget.
package agent
