// Command report turns critest's JSON reports into the table of docs/conformance.md, and judges them.
//
//	report -section 'Handler `vm`' -commit ID -reasons reasons-vm.txt [-doc docs/conformance.md] report.json...
//	report -expect ci-specs-vm.txt report.json
//
// Of a spec that several reports hold, the last result counts. With -reasons, a failure for which nobody wrote a reason
// is an error, and so is a reason for a spec that passes; with -expect, everything but a pass of each spec is.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// suite is what this needs of Ginkgo's report.
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

// chosen says whether the spec was to run: Ginkgo reports what its filters left out as skipped without a message.
func (s spec) chosen() bool {
	return s.LeafNodeType == "It" && s.State != "pending" && (s.State != "skipped" || s.Failure.Message != "")
}

func main() {
	section := flag.String("section", "", "heading in the document")
	commit := flag.String("commit", "", "commit that was tested")
	reasons := flag.String("reasons", "", "file of lines \"regular expression<TAB>reason\": why specs do not pass")
	expect := flag.String("expect", "", "file of regular expressions, one a line: each has to match specs that ran, all of which passed")
	doc := flag.String("doc", "", "document whose section is replaced by the table")
	flag.Parse()
	if err := run(flag.Args(), *section, *commit, *reasons, *expect, *doc); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(files []string, section, commit, reasonsFile, expectFile, doc string) error {
	specs, again, err := readReports(files)
	if err != nil {
		return err
	}
	if expectFile != "" {
		expected, err := readRules(expectFile)
		if err != nil {
			return err
		}
		return judge(specs, expected)
	}
	reasons, err := readRules(reasonsFile)
	if err != nil {
		return err
	}
	text := table(specs, reasons, commit)
	if len(again) > 0 {
		text += "\nRun a second time, and counted so: " + strings.Join(again, "; ") + ".\n"
	}
	fmt.Print(text)
	if doc != "" {
		if err := replaceSection(doc, section, text); err != nil {
			return err
		}
	}
	return errors.Join(unexplained(specs, reasons), stale(specs, reasons))
}

// readReports returns the specs that were to run, by name, and the names of those that ran more than once.
func readReports(files []string) (specs []spec, again []string, err error) {
	byName := map[string]spec{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		var suites []suite
		if err := json.Unmarshal(raw, &suites); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, s := range suites {
			for _, r := range s.SpecReports {
				if !r.chosen() {
					continue
				}
				if _, ok := byName[r.name()]; ok {
					again = append(again, short(r.name()))
				}
				byName[r.name()] = r
			}
		}
	}
	for _, s := range byName {
		specs = append(specs, s)
	}
	slices.SortFunc(specs, func(a, b spec) int { return strings.Compare(a.name(), b.name()) })
	return specs, again, nil
}

func table(specs []spec, reasons []rule, commit string) string {
	var b strings.Builder
	counts := map[string]int{}
	var took time.Duration
	for _, s := range specs {
		counts[s.State]++
		took += s.RunTime
	}
	failed := len(specs) - counts["passed"] - counts["skipped"]
	fmt.Fprintf(&b, "critest v1.36.0 at commit %s, %s, %s.\n\n", commit, time.Now().UTC().Format(time.DateOnly), minutes(took))
	fmt.Fprintf(&b, "| passed | failed | skipped by the suite |\n|---|---|---|\n| %d | %d | %d |\n", counts["passed"], failed, counts["skipped"])
	if counts["passed"] < len(specs) {
		fmt.Fprintf(&b, "\n| spec | result | reason |\n|---|---|---|\n")
	}
	for _, state := range []string{"failed", "panicked", "timedout", "interrupted", "aborted", "skipped"} {
		for _, s := range specs {
			if s.State == state {
				fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(short(s.name())), state, cell(explain(s, reasons)))
			}
		}
	}
	fmt.Fprintf(&b, "\n<details><summary>The specs that pass</summary>\n\n")
	for _, s := range specs {
		if s.State == "passed" {
			fmt.Fprintf(&b, "- %s\n", short(s.name()))
		}
	}
	fmt.Fprintf(&b, "\n</details>\n")
	return b.String()
}

// explain prefers the reason that people wrote to what the suite said.
func explain(s spec, reasons []rule) string {
	if i := slices.IndexFunc(reasons, func(r rule) bool { return r.match.MatchString(s.name()) }); i >= 0 {
		return reasons[i].text
	}
	first, _, _ := strings.Cut(strings.TrimSpace(s.Failure.Message), "\n")
	if s.State != "skipped" {
		return "not explained: " + first
	}
	return first
}

// judge says which expected specs did not pass.
func judge(specs []spec, expected []rule) error {
	var errs []error
	for _, s := range specs {
		if s.State != "passed" {
			first, _, _ := strings.Cut(strings.TrimSpace(s.Failure.Message), "\n")
			errs = append(errs, fmt.Errorf("%s: %s: %s", s.State, s.name(), first))
		}
	}
	for _, e := range expected {
		if !slices.ContainsFunc(specs, func(s spec) bool { return e.match.MatchString(s.name()) }) {
			errs = append(errs, fmt.Errorf("no spec is called %q", e.match))
		}
	}
	if len(errs) == 0 {
		fmt.Printf("%d specs passed\n", len(specs))
	}
	return errors.Join(errs...)
}

func unexplained(specs []spec, reasons []rule) error {
	var errs []error
	for _, s := range specs {
		known := slices.ContainsFunc(reasons, func(r rule) bool { return r.match.MatchString(s.name()) })
		if s.State != "passed" && s.State != "skipped" && !known {
			errs = append(errs, fmt.Errorf("%s without a known reason: %s", s.State, s.name()))
		}
	}
	return errors.Join(errs...)
}

func stale(specs []spec, reasons []rule) error {
	var errs []error
	for _, r := range reasons {
		for _, s := range specs {
			if s.State == "passed" && r.match.MatchString(s.name()) {
				errs = append(errs, fmt.Errorf("passes, so that its reason %q has to go: %s", r.match, s.name()))
			}
		}
	}
	return errors.Join(errs...)
}

// replaceSection puts text below a heading of the document.
func replaceSection(doc, section, text string) error {
	raw, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	heading := "## " + section + "\n"
	before, rest, ok := strings.Cut(string(raw), heading)
	if !ok {
		return fmt.Errorf("%s has no heading %q", doc, strings.TrimSpace(heading))
	}
	after := ""
	if i := strings.Index(rest, "\n## "); i >= 0 {
		after = rest[i:]
	}
	return os.WriteFile(doc, []byte(before+heading+"\n"+text+after), 0o644)
}

// short leaves out of a spec's name what all of them have.
func short(name string) string {
	return strings.TrimSuffix(strings.TrimPrefix(name, "[k8s.io] "), " [Conformance]")
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

// rule is a line of a reasons file or of a list of specs, which has no text.
type rule struct {
	match *regexp.Regexp
	text  string
}

func readRules(file string) ([]rule, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var rules []rule
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, text, _ := strings.Cut(line, "\t")
		match, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		rules = append(rules, rule{match, strings.TrimSpace(text)})
	}
	return rules, lines.Err()
}

// minutes says a time in whole minutes.
func minutes(d time.Duration) string {
	switch n := int(d.Round(time.Minute).Minutes()); n {
	case 0:
		return "less than a minute"
	case 1:
		return "1 minute"
	default:
		return fmt.Sprintf("%d minutes", n)
	}
}
