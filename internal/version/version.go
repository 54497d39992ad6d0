// Package version holds what the build says of itself. It imports nothing.
package version

// Version is set by the linker to the output of git describe.
var Version = "unknown"
