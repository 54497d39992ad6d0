// Command report turns critest's JSON report into the table of docs/conformance.md.
//
//	report -handler vm -commit ID -reasons reasons.txt report.json > table.md
//
// A reason belongs to every spec that did not pass: reasons.txt has lines "regular expression<TAB>reason".
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

type suite struct {
	SpecReports []spec
}

type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

type reason struct {
	match *regexp.Regexp
	text  string
}

func main() {
	handler := flag.String("handler", "", "runtime handler that was tested")
	commit := flag.String("commit", "", "commit that was tested")
	reasonsFile := flag.String("reasons", "", "why specs do not pass")
	names := flag.Bool("names", false, "print only the names of the specs that passed")
	flag.Parse()
	if err := run(flag.Arg(0), *handler, *commit, *reasonsFile, *names); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(file, handler, commit, reasonsFile string, names bool) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var suites []suite
	if err := json.Unmarshal(raw, &suites); err != nil {
		return err
	}
	reasons, err := readReasons(reasonsFile)
	if err != nil {
		return err
	}
	counts := map[string]int{}
	var rest []spec
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType != "It" {
				continue
			}
			counts[r.State]++
			switch {
			case r.State != "passed":
				rest = append(rest, r)
			case names:
				fmt.Println(r.name())
			}
		}
	}
	if names {
		return nil
	}
	fmt.Printf("## `%s`\n\ncritest v1.36.0, commit %s, %s.\n\n", handler, commit, time.Now().UTC().Format(time.DateOnly))
	fmt.Printf("| passed | failed | skipped |\n|---|---|---|\n| %d | %d | %d |\n\n",
		counts["passed"], counts["failed"]+counts["panicked"]+counts["timedout"]+counts["interrupted"], counts["skipped"]+counts["pending"])
	if len(rest) == 0 {
		return nil
	}
	fmt.Printf("| spec | result | reason |\n|---|---|---|\n")
	slices.SortFunc(rest, func(a, b spec) int { return strings.Compare(a.State+a.name(), b.State+b.name()) })
	for _, r := range rest {
		fmt.Printf("| %s | %s | %s |\n", cell(r.name()), r.State, cell(explain(r, reasons)))
	}
	return nil
}

// explain prefers the reason that people wrote to what the suite said.
func explain(s spec, reasons []reason) string {
	for _, r := range reasons {
		if r.match.MatchString(s.name()) {
			return r.text
		}
	}
	first, _, _ := strings.Cut(strings.TrimSpace(s.Failure.Message), "\n")
	if s.State != "skipped" {
		return "not explained: " + first
	}
	return first
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

func readReasons(file string) ([]reason, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var reasons []reason
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, text, ok := strings.Cut(line, "\t")
		if !ok {
			return nil, fmt.Errorf("%s: %q: want a regular expression, a tab and a reason", file, line)
		}
		match, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		reasons = append(reasons, reason{match, text})
	}
	return reasons, lines.Err()
}
