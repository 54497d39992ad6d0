package steps

import (
	"context"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

func TestNothingIsRecordedUnasked(t *testing.T) {
	ctx, end := Start(t.Context(), "step")
	end()
	Add(ctx, Report{Took: 1, Steps: []Step{{Name: "s", In: -1}}})
	if Recording(ctx) || Encoded(ctx) != nil || len(Recorded(ctx).Steps) != 0 {
		t.Error("something was recorded")
	}
}

func TestRecording(t *testing.T) {
	ctx := Record(t.Context())
	outer, endOuter := Start(ctx, "outer")
	_, endInner := Start(outer, "inner")
	endInner()
	endOuter()
	Start(ctx, "never ended")
	report, err := Decode(Encoded(ctx))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Steps) != 3 {
		t.Fatalf("got %+v", report)
	}
	o, i, last := report.Steps[0], report.Steps[1], report.Steps[2]
	if o.In != -1 || i.In != 0 || last.In != -1 || i.Start < o.Start || i.End > o.End || last.End != report.Took {
		t.Errorf("got %+v", report)
	}
}

// hold checks what holds of every recording, whoever has reported to it.
func hold(t *testing.T, ctx context.Context) {
	t.Helper()
	report := Recorded(ctx)
	if len(report.Steps) > maxSteps {
		t.Fatalf("%d steps", len(report.Steps))
	}
	for i, s := range report.Steps {
		within := Step{End: report.Took}
		if s.In >= i || s.In < -1 {
			t.Fatalf("step %d is in %d", i, s.In)
		}
		if s.In >= 0 {
			within = report.Steps[s.In]
		}
		if s.Start < within.Start || s.End > within.End || s.End < s.Start {
			t.Fatalf("step %+v leaves %+v", s, within)
		}
		if s.Name == "" || len(s.Name) > maxName || strings.ContainsAny(s.Name, "\n\x1b\"<") {
			t.Fatalf("name %q", s.Name)
		}
	}
}

func TestAddBelievesNothing(t *testing.T) {
	const much = time.Duration(math.MaxInt64)
	for name, report := range map[string]Report{
		"honest":        {Took: 0, Steps: []Step{{Name: "mount", In: -1}, {Name: "part", In: 0}}},
		"long times":    {Took: much, Steps: []Step{{Name: "a", Start: much, End: much, In: -1}, {Name: "b", Start: -much, End: much, In: 0}}},
		"negative":      {Took: -much, Steps: []Step{{Name: "a", Start: -much, End: -much - 1, In: -1}}},
		"its own child": {Steps: []Step{{Name: "a", In: 0}, {Name: "b", In: 2}, {Name: "c", In: -7}, {Name: "d", In: math.MaxInt}}},
		"names":         {Steps: []Step{{Name: "\x1b[2J\n<script>", In: -1}, {In: -1}, {Name: strings.Repeat("ä", 500), In: -1}, {Name: "\xff\xfe", In: -1}}},
		"too many":      {Steps: make([]Step, 1000)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := Record(t.Context())
			call, end := Start(ctx, "call")
			Add(call, report)
			Add(call, report)
			end()
			hold(t, ctx)
			if got := Recorded(ctx).Steps; len(got) < 2 || got[1].In != 0 {
				t.Errorf("what was reported is not below the call: %+v", got)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	many, err := json.Marshal(Report{Steps: make([]Step, maxSteps+1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{nil, []byte("["), many, []byte(`{"took":` + strings.Repeat(" ", maxReport) + `1}`), []byte(`{"took":1e99}`)} {
		if r, err := Decode(data); err == nil {
			t.Errorf("%.40q was read as %+v", data, r)
		}
	}
}

// TestAnswerInTheMiddle: what a call took on its way is on both sides of what it took there.
func TestAnswerInTheMiddle(t *testing.T) {
	ctx := Record(t.Context())
	at(ctx).recorder.began = time.Now().Add(-time.Hour)
	Add(ctx, Report{Took: 20 * time.Minute, Steps: []Step{{Name: "all of it", Start: 0, End: 20 * time.Minute, In: -1}}})
	s := Recorded(ctx).Steps[0]
	if s.Start < 20*time.Minute || s.Start > 20*time.Minute+time.Second || s.End-s.Start != 20*time.Minute {
		t.Errorf("got %+v", s)
	}
}

func FuzzAdd(f *testing.F) {
	f.Add([]byte(`{"took":5,"steps":[{"name":"a","start":1,"end":4,"in":-1},{"name":"b","start":2,"end":9,"in":0}]}`))
	f.Add([]byte(`{"took":-5,"steps":[{"name":"\u0000","start":-9223372036854775808,"end":9223372036854775807,"in":99}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		report, err := Decode(data)
		if err != nil {
			return
		}
		ctx := Record(t.Context())
		call, end := Start(ctx, "call")
		Add(call, report)
		end()
		hold(t, ctx)
	})
}
