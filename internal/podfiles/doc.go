// Package podfiles makes the content of the files that a pod gets from its runtime: /etc/hosts and /etc/resolv.conf.
//
// It owns no state, and reads nothing but the host's own resolv.conf. Pods of every kind use it.
package podfiles
