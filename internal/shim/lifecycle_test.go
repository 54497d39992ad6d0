package shim

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pistis-run/pistis/internal/lifecycle"
)

// TestTables compares every pair of state and operation with testdata/lifecycle.txt, so that a change of a table is
// seen as what it is.
func TestTables(t *testing.T) {
	ops := []operation{opCreate, opCreated, opAbandon, opStart, opStarted, opSignal, opUse, opPause, opResume, opExit, opStop, opDelete, opRestore}
	var b strings.Builder
	dump(&b, "sandbox", sandboxTable(), []sandboxState{sandboxNew, sandboxCreated, sandboxStarting, sandboxReady, sandboxStopping, sandboxStopped}, ops)
	dump(&b, "process", processTable(), []processState{processCreating, processCreated, processStarting, processRunning, processPaused, processStopped, processDeleting, processAbandoned}, ops)
	want, err := os.ReadFile("testdata/lifecycle.txt")
	if err != nil || string(want) != b.String() {
		t.Errorf("the tables differ from testdata/lifecycle.txt (%v); they are:\n%s", err, b.String())
	}
}

func dump[S ~string](b *strings.Builder, what string, table lifecycle.Table[S, operation], states []S, ops []operation) {
	for _, s := range states {
		for _, op := range ops {
			next, err := table.Next(s, op)
			if err != nil {
				fmt.Fprintf(b, "%s %s: %s: refused\n", what, s, op)
				continue
			}
			if !slices.Contains(states, next) {
				fmt.Fprintf(b, "%s %s: %s leads nowhere: %s\n", what, s, op, next)
			}
			fmt.Fprintf(b, "%s %s: %s: %s\n", what, s, op, next)
		}
	}
}
