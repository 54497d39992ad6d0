// Package doctor looks at a host and says what of Pistis works on it, what does not and why, and what to do.
//
// It changes nothing, needs no daemon, and owns no state. Every check is bounded in time. It must not import the engine:
// it looks at the host itself, so that it also tells why a daemon cannot start.
package doctor
