// Package steps records what a call consists of, in processes that send no traces themselves: shims, monitors and agents.
//
// A call whose client asks for it is recorded. Its steps go back with its answer as a Report, times in it are since the call
// began, and whoever made the call puts them below what it has recorded itself. So they come to the daemon, which makes
// spans of them. A call that is not recorded costs nothing. Reports come from guests too: Decode and Add believe nothing
// that is in them. The package has no state and imports the standard library alone; how ttrpc carries reports is in
// internal/steps/rpc.
package steps

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// maxSteps is how many steps of a call are recorded; what comes after them is not.
	maxSteps = 64
	// maxName bounds a name, maxReport an encoded report, both in bytes.
	maxName   = 48
	maxReport = 16 << 10
	// whole is the step that a call itself is.
	whole = -1
)

// Step is a part of a call.
type Step struct {
	Name string `json:"name"`
	// Start and End are times since the call began.
	Start time.Duration `json:"start"`
	End   time.Duration `json:"end"`
	// In is the index of the step that this one is a part of, which is before it; -1 for a part of the call itself.
	In int `json:"in"`
}

// Report is what a call took, and its steps.
type Report struct {
	Took  time.Duration `json:"took"`
	Steps []Step        `json:"steps,omitempty"`
}

// recorder has the steps of one call.
type recorder struct {
	began time.Time
	mu    sync.Mutex
	steps []Step
}

// position is where in a recording a context is.
type position struct {
	recorder *recorder
	step     int
}

type positionKey struct{}

func at(ctx context.Context) position {
	p, _ := ctx.Value(positionKey{}).(position)
	return p
}

// Record records the steps that begin in the context, of a call that begins now.
func Record(ctx context.Context) context.Context {
	return context.WithValue(ctx, positionKey{}, position{&recorder{began: time.Now()}, whole})
}

// Recording tells whether the steps of the context are recorded.
func Recording(ctx context.Context) bool { return at(ctx).recorder != nil }

// Start begins a step. One that is not ended lasts as long as the call, as does the one that the call failed in.
func Start(ctx context.Context, name string) (_ context.Context, end func()) {
	p := at(ctx)
	if p.recorder == nil {
		return ctx, func() {}
	}
	i := p.recorder.add(Step{Name: name, Start: time.Since(p.recorder.began), End: -1, In: p.step})
	if i < 0 {
		return ctx, func() {}
	}
	return context.WithValue(ctx, positionKey{}, position{p.recorder, i}), func() { p.recorder.end(i) }
}

// add returns the index of the new step, or -1 where there is no room.
func (r *recorder) add(s Step) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.steps) == maxSteps {
		return -1
	}
	r.steps = append(r.steps, s)
	return len(r.steps) - 1
}

func (r *recorder) end(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps[i].End = time.Since(r.began)
}

// Recorded is what was recorded in the context until now.
func Recorded(ctx context.Context) Report {
	r := at(ctx).recorder
	if r == nil {
		return Report{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	report := Report{Took: time.Since(r.began), Steps: append([]Step(nil), r.steps...)}
	for i := range report.Steps {
		if s := &report.Steps[i]; s.End < s.Start {
			s.End = report.Took
		}
	}
	return report
}

// Encoded is what was recorded in the context until now, as it travels; nil where nothing is recorded.
func Encoded(ctx context.Context) []byte {
	if !Recording(ctx) {
		return nil
	}
	data, err := json.Marshal(Recorded(ctx))
	if err != nil {
		return nil // strings and numbers can always be encoded
	}
	return data
}

// Decode reads a report of whoever sent it.
func Decode(data []byte) (Report, error) {
	if len(data) > maxReport {
		return Report{}, fmt.Errorf("report of steps: %d bytes, at most %d are possible", len(data), maxReport)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return Report{}, fmt.Errorf("report of steps: %w", err)
	}
	if len(r.Steps) > maxSteps {
		return Report{}, fmt.Errorf("report of steps: %d steps, at most %d are possible", len(r.Steps), maxSteps)
	}
	return r, nil
}

// Add puts what a call has reported, which has just ended, below the step that the context is in and that the call was.
// Nothing in the report is believed: names are cut and cleaned, and no step leaves the time of the one that it is in.
func Add(ctx context.Context, report Report) {
	p := at(ctx)
	if p.recorder == nil {
		return
	}
	r := p.recorder
	r.mu.Lock()
	defer r.mu.Unlock()
	call := Step{End: time.Since(r.began), In: whole}
	if p.step != whole {
		call.Start = r.steps[p.step].Start
	}
	first := len(r.steps)
	// What the call took here and not there went to the way, which is as long in both directions.
	shift := call.Start + (call.End-call.Start-min(bounded(report.Took), call.End-call.Start))/2
	for i, s := range report.Steps {
		if len(r.steps) == maxSteps {
			return
		}
		within, in := call, p.step
		if 0 <= s.In && s.In < i {
			in = first + s.In
			within = r.steps[in]
		}
		s.Name, s.In = clean(s.Name), in
		s.Start = clamp(bounded(s.Start)+shift, within.Start, within.End)
		s.End = clamp(bounded(s.End)+shift, s.Start, within.End)
		r.steps = append(r.steps, s)
	}
}

// bounded bounds a time that somebody sent, so that nothing can be added to it that it does not hold.
func bounded(d time.Duration) time.Duration { return clamp(d, 0, 24*time.Hour) }

func clamp(d, low, high time.Duration) time.Duration { return min(max(d, low), high) }

// clean makes a name of what may be anything.
func clean(name string) string {
	name = strings.Map(func(c rune) rune {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.ContainsRune(" -_.:+/", c):
			return c
		}
		return '?'
	}, name[:min(len(name), maxName)])
	if name == "" {
		return "?"
	}
	return name
}
