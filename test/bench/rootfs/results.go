package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// marker is fsload's.
const marker = "fsload-results "

// results are numbers by row and column.
type results map[string]map[string]float64

func (r results) add(row, column string, value float64) {
	if r[row] == nil {
		r[row] = map[string]float64{}
	}
	r[row][column] = value
}

// take adds what fsload printed.
func (r results) take(column, out string) error {
	_, line, found := strings.Cut(out, marker)
	line, _, _ = strings.Cut(line, "\n")
	var values map[string]float64
	if err := json.Unmarshal([]byte(line), &values); !found || err != nil {
		return fmt.Errorf("%s: no results: %w: …%s", column, err, out[max(0, len(out)-2000):])
	}
	for row, v := range values {
		r.add(row, column, v)
	}
	return nil
}

// print writes the table in Markdown; the last column is the microVM's ratio to the guest with virtio-fs.
func (r results) print(w io.Writer) {
	columns := []string{peer, host, share, micro}
	fmt.Fprintf(w, "| | %s | %s ÷ %s |\n|---|%s---|\n", strings.Join(columns, " | "), micro, share, strings.Repeat("---|", len(columns)))
	for _, row := range slices.Sorted(maps.Keys(r)) {
		cells := []string{row}
		for _, c := range columns {
			v, ok := r[row][c]
			if !ok {
				cells = append(cells, "–")
				continue
			}
			cells = append(cells, fmt.Sprintf("%.*f", digits(v), v))
		}
		ratio := "–"
		if v, ok := r[row][share]; ok && v > 0 {
			ratio = fmt.Sprintf("%.2f", r[row][micro]/v)
		}
		fmt.Fprintf(w, "| %s | %s |\n", strings.Join(cells, " | "), ratio)
	}
}

func digits(v float64) int {
	switch {
	case v >= 100:
		return 0
	case v >= 10:
		return 1
	default:
		return 2
	}
}
