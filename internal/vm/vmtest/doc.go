// Package vmtest is a driver without a VMM and an agent without a guest, for tests of what is above them.
//
// A [Driver] starts [Machine]s whose Dial leads to an [Agent] in the test's own process, over socket pairs that speak
// the real protocol. Tests make either of them misbehave through their exported fields, which are set before use.
// Only tests may import it.
package vmtest
