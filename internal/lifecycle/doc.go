// Package lifecycle holds the rules of which operation a state allows, as data, and of who may work on an object.
//
// A [Table] is a literal in the package that owns the states; it is never written after that, so it may be used
// from any goroutine. A [Claim] is part of the object. The package imports nothing of ours.
package lifecycle
