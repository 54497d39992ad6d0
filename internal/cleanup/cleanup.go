// Package cleanup undoes what a failed operation has acquired.
//
// A [Stack] belongs to one operation and one goroutine. Its steps run in reverse order, all of them whatever
// fails, under a context that the caller's cancellation does not reach and that a timeout bounds. The package
// imports nothing of ours.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Timeout bounds all steps of one stack together.
const Timeout = 2 * time.Minute

// Stack of undo steps. The zero value is empty and ready.
type Stack struct {
	steps []step
}

type step struct {
	name string
	undo func(context.Context) error
}

// Add puts a step on top. name says what is undone, as "remove network namespace".
func (s *Stack) Add(name string, undo func(context.Context) error) {
	s.steps = append(s.steps, step{name, undo})
}

// Release forgets the steps: what they would undo is there to stay.
func (s *Stack) Release() { s.steps = nil }

// Unwind is for defer: it runs the stack when *err is not nil and joins what went wrong to it.
func (s *Stack) Unwind(ctx context.Context, err *error) {
	if *err != nil {
		*err = errors.Join(*err, s.Run(ctx))
	}
}

// Run undoes everything, the newest first, and empties the stack. It returns the joined errors of the steps.
func (s *Stack) Run(ctx context.Context) error {
	ctx, cancel := Detach(ctx)
	defer cancel()
	var errs []error
	for _, step := range slices.Backward(s.steps) {
		if err := step.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.name, err))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}

// Detach returns a context for cleaning up: with ctx's values, without its cancellation, bounded by Timeout.
func Detach(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), Timeout)
}
