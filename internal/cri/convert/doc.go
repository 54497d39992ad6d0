// Package convert turns what CRI asks for into the engine's configurations of pods and containers, and some of that
// back. It validates every field: what is wrong is refused as ErrInvalidArgument that names the field, what cannot be
// honoured as ErrNotImplemented, and nothing is dropped in silence: fields_test.go lists every field of the
// configurations as carried, refused or ignored with a reason, and holds that by test.
//
// The package has no state and calls nobody.
package convert
