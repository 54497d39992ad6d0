package lifecycle

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Table says for every state which operations it allows and the state that each leads to.
type Table[State, Op ~string] map[State]map[Op]State

// Next is the state after op. A refusal is a [*Refusal].
func (t Table[State, Op]) Next(from State, op Op) (State, error) {
	if next, ok := t[from][op]; ok {
		return next, nil
	}
	return from, &Refusal{State: string(from), Operation: string(op)}
}

// Refusal is an operation that the state does not allow. It is a failed precondition.
type Refusal struct {
	State, Operation string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%s is not possible in state %s", r.Operation, r.State)
}

func (r *Refusal) Unwrap() error { return errdefs.ErrFailedPrecondition }
