// Package doctor looks at a host and says what of Pistis works on it, what does not and why, and what to do.
//
// It needs no daemon and owns no state. It changes nothing, but that it may boot a test guest under KVM, whose answer is
// kept where the daemon looks for it too. Every check is bounded in time. It must not import the engine:
// it looks at the host itself, so that it also tells why a daemon cannot start.
package doctor
