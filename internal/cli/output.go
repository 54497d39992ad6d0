package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// each does something to one after another, up to the first failure, and says which it was done to.
func (a *app) each(list []string, do func(what string) error) error {
	done := []string{}
	var err error
	for _, what := range list {
		if err = do(what); err != nil {
			break
		}
		done = append(done, what)
		if a.output == "" {
			fmt.Fprintln(a.out, what)
		}
	}
	if a.output == "json" {
		err = errors.Join(err, printValue(a.out, done))
	}
	return err
}

// streams refuses -o for what shows a process's output, which is as the process wrote it.
func (a *app) streams(what string) error {
	if a.output != "" {
		return fmt.Errorf("%s shows what the process writes, as it is: leave -o %s out", what, a.output)
	}
	return nil
}

// maxJSONLine is what a line's text may have; a longer one becomes several, of the same time.
const maxJSONLine = 1 << 20

// jsonLines writes lines that begin with their time as JSON objects, one a line.
type jsonLines struct {
	to     io.Writer
	stream string
	rest   []byte
	at     string // time of the line that rest is of, once it is known
}

func (j *jsonLines) Write(p []byte) (int, error) {
	j.rest = append(j.rest, p...)
	for {
		line, rest, whole := bytes.Cut(j.rest, []byte("\n"))
		if !whole && len(line) < maxJSONLine {
			return len(p), nil
		}
		j.rest = rest
		if err := j.print(line); err != nil {
			return 0, err
		}
		if whole {
			j.at = ""
		}
	}
}

func (j *jsonLines) print(line []byte) error {
	text := string(line)
	if j.at == "" {
		j.at, text, _ = strings.Cut(text, " ")
	}
	return json.NewEncoder(j.to).Encode(map[string]string{"time": j.at, "stream": j.stream, "log": text})
}

// close writes a last line that has no end.
func (j *jsonLines) close() error {
	if len(j.rest) == 0 {
		return nil
	}
	return j.print(j.rest)
}

// printJSON prints a list of the daemon's answers as a JSON array.
func printJSON[M proto.Message](w io.Writer, list []M) error {
	raw := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		b, err := protojson.Marshal(m)
		if err != nil {
			return err
		}
		raw = append(raw, b)
	}
	return printValue(w, raw)
}

// printValue prints any value as indented JSON.
func printValue(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints rows under a header, aligned.
func table(w io.Writer, header string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, strings.Join(strings.Fields(header), "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// short is the part of an id or digest that people read.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// ago says how long a moment in nanoseconds since 1970 is past.
func ago(ns int64) string {
	if ns <= 0 {
		return "-"
	}
	d := time.Since(time.Unix(0, ns))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

// size prints bytes with a binary unit.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, exp := float64(n)/unit, 0
	for value >= unit && exp < 4 {
		value /= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[exp])
}
