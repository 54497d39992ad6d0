// Package stdio carries the standard streams of a process in the guest.
//
// A [Set] owns the agent's ends of the pipes, or the terminal, of one process from its creation to its
// deletion. Output stays in the pipe until a stream takes it, so that nothing is lost and a process that
// nobody listens to is held back. Each descriptor is served to one stream at most, by one call of
// [Set.Serve], which may run before the process is started and after it has ended.
//
// Of ours the package imports internal/stdio only.
package stdio
