package rtnl

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestDump(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name  string
		fails []error // of the first calls
		want  []int
		err   error
		calls int
	}{
		{name: "at once", want: []int{1, 2}, calls: 1},
		{name: "interrupted twice", fails: []error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted}, want: []int{1, 2}, calls: 3},
		{name: "another error", fails: []error{netlink.ErrDumpInterrupted, broken}, err: broken, calls: 2},
		{name: "never consistent", fails: slices.Repeat([]error{netlink.ErrDumpInterrupted}, attempts), err: netlink.ErrDumpInterrupted, calls: attempts},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			calls := 0
			got, err := Dump(func() ([]int, error) {
				calls++
				if calls <= len(test.fails) {
					return []int{1}, test.fails[calls-1] // a partial view
				}
				return []int{1, 2}, nil
			})
			if !errors.Is(err, test.err) || !slices.Equal(got, test.want) && err == nil || calls != test.calls {
				t.Errorf("%v, %v after %d calls; want %v, %v after %d", got, err, calls, test.want, test.err, test.calls)
			}
		})
	}
}
