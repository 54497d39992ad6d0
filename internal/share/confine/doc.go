// Package confine makes a process a server of files and nothing else: an empty root, five capabilities, the system calls of a
// file server. It owns no state and imports nothing of ours.
package confine
