package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// row is a line of the table.
type row struct {
	name, what, unit string
	// more tells that a larger number is the better one.
	more bool
	// tail tells that the 95th percentile is worth a number.
	tail bool
	// target is what Pistis is to reach: a ratio to the best peer, or a number of its own.
	target string
}

// The rows' names.
const (
	start   = "start"
	execute = "exec"
	remove  = "stop"
	cpu     = "cpu"
	rate    = "rate"
	rateCPU = "ratecpu"
	memory  = "memory"
	daemon  = "daemon"
	stats   = "stats"
	metrics = "metrics"
	logRate = "log"
	restart = "restart"
)

func allRows() []row {
	return []row{
		{name: start, what: "RunPodSandbox + CreateContainer + StartContainer", unit: "ms", tail: true, target: "≤ 0.6×"},
		{name: execute, what: "ExecSync of `true`", unit: "ms", tail: true, target: "≤ 0.8×"},
		{name: remove, what: "StopPodSandbox + RemovePodSandbox", unit: "ms", tail: true, target: "≤ 0.6×"},
		{name: cpu, what: "processor time of all that, daemon and pod", unit: "ms"},
		{name: rate, what: "pods started, 4 at a time", unit: "/s", more: true, target: "≥ 1.5×"},
		{name: rateCPU, what: "processor time of each of these starts", unit: "ms"},
		{name: memory, what: "shims and monitors, PSS per pod", unit: "MB", target: "≤ 1 MB"},
		{name: daemon, what: "daemon, PSS", unit: "MB", target: "≤ 70 MB"},
		{name: stats, what: "ListContainerStats", unit: "ms", target: "≤ 0.3×"},
		{name: metrics, what: "ListPodSandboxMetrics", unit: "ms", target: "≤ 0.3×"},
		{name: logRate, what: "container log, at the file", unit: "MB/s", more: true, target: "≥ 1×"},
		{name: restart, what: "daemon restart until all pods are served", unit: "ms", target: "≤ 0.5×"},
	}
}

// table is what was measured: by row and subject.
type table struct {
	rows   []row
	values map[string]map[string][]float64
}

// newTable makes a table of the rows with these names, separated by commas; none means all.
func newTable(names string) (*table, error) {
	t := &table{rows: allRows(), values: map[string]map[string][]float64{}}
	if names == "" {
		return t, nil
	}
	wanted := strings.Split(names, ",")
	t.rows = slices.DeleteFunc(t.rows, func(r row) bool { return !slices.Contains(wanted, r.name) })
	if len(t.rows) != len(wanted) {
		return nil, fmt.Errorf("rows %q: not all of these are there", names)
	}
	return t, nil
}

// wants tells whether any of these rows is measured.
func (t *table) wants(names ...string) bool {
	return slices.ContainsFunc(t.rows, func(r row) bool { return slices.Contains(names, r.name) })
}

func (t *table) add(name, subject string, values ...float64) {
	if t.values[name] == nil {
		t.values[name] = map[string][]float64{}
	}
	t.values[name][subject] = append(t.values[name][subject], values...)
}

// percentile of values, which has at least one; the nearest of them.
func percentile(values []float64, p int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)*p/100]
}

// best is the best median of those that are not ours and have the OCI runtime, if one is named; false when there is none.
func (t *table) best(r row, runtime string) (float64, bool) {
	var found []float64
	for subject, values := range t.values[r.name] {
		if !ours(subject) && strings.HasSuffix(subject, runtime) {
			found = append(found, percentile(values, 50))
		}
	}
	switch {
	case len(found) == 0:
		return 0, false
	case r.more:
		return slices.Max(found), true
	default:
		return slices.Min(found), true
	}
}

// print writes the table in Markdown: medians, after a slash the 95th percentile, in brackets the ratio to the best peer,
// and to the best one with the same OCI runtime where that is another.
func (t *table) print(w io.Writer, subjects []string, n amounts) {
	fmt.Fprintf(w, "%d single pods and %d × %d at once of each; medians / 95th percentiles (**ratio to the best peer**, to the best one with the same OCI runtime)\n\n", n.rounds, n.turns, n.pods)
	fmt.Fprintf(w, "| | %s | to reach |\n|---|%s---|\n", strings.Join(subjects, " | "), strings.Repeat("---|", len(subjects)))
	for _, r := range t.rows {
		cells := []string{r.what + ", " + r.unit}
		for _, subject := range subjects {
			cells = append(cells, t.cell(r, subject))
		}
		fmt.Fprintf(w, "| %s | %s |\n", strings.Join(cells, " | "), r.target)
	}
}

func (t *table) cell(r row, subject string) string {
	values := t.values[r.name][subject]
	if len(values) == 0 {
		return "–"
	}
	median := percentile(values, 50)
	text := number(median)
	if r.tail {
		text += " / " + number(percentile(values, 95))
	}
	best, compared := t.best(r, "")
	if !compared || !ours(subject) {
		return text
	}
	text += fmt.Sprintf(" (**%.2f×**", median/best)
	if same, ok := t.best(r, subject[strings.LastIndex(subject, "/"):]); ok && same != best {
		text += fmt.Sprintf(", %.2f×", median/same)
	}
	return text + ")"
}

// number writes three significant digits at most behind a point.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
