package cleanup

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestUnwindRunsInReverseAndJoins(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var ran []string
	boom := errors.New("boom")
	run := func() (err error) {
		var undo Stack
		defer undo.Unwind(ctx, &err)
		for _, name := range []string{"a", "b", "c"} {
			undo.Add(name, func(ctx context.Context) error {
				if ctx.Err() != nil {
					t.Errorf("step %s runs under an ended context", name)
				}
				if _, bounded := ctx.Deadline(); !bounded {
					t.Errorf("step %s has no deadline", name)
				}
				ran = append(ran, name)
				if name == "b" {
					return boom
				}
				return nil
			})
		}
		return errors.New("operation failed")
	}
	err := run()
	if !slices.Equal(ran, []string{"c", "b", "a"}) {
		t.Errorf("order %v", ran)
	}
	if !errors.Is(err, boom) || err.Error() != "operation failed\nb: boom" {
		t.Errorf("error %q", err)
	}
}

func TestUnwindLeavesSuccessAlone(t *testing.T) {
	var undo Stack
	undo.Add("x", func(context.Context) error { t.Error("ran"); return nil })
	var err error
	undo.Unwind(t.Context(), &err)
	undo.Release()
	if err := undo.Run(t.Context()); err != nil {
		t.Error(err)
	}
}
