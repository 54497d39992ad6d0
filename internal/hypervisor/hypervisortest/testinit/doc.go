// Command testinit is the first process of a guest that a driver's contract tests boot. It loads the initrd's
// modules and does what the host asks for: every stream to its port carries one line and is answered with
// text that starts with "ok" or "error", and then EOF.
package main
