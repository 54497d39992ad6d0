// Command report makes tables of what hack/lab-test.sh has run: tests, and kinds of volume, by handler.
//
//	report -commit ID [-doc docs/volumes.md] HANDLER=LOG...
//
// A log's first line that begins with "== HANDLER: " says the hypervisor's version, the rest is output of go test -v. With -doc
// the table of volumes replaces what the document has below its heading. The exit code is 1 if a test failed or none was run.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// heading is that of the document's section.
const heading = "## On each hypervisor\n"

// kinds is the test whose subtests are rows of their own, titles says which others are rows of that table.
const kinds = "TestVolumeKinds"

var titles = map[string]string{
	"TestBlockVolumes":     "block PVC, raw and with a file system",
	"TestImageVolumesInVM": "image volumes",
	"TestReloaders":        "updates are heard by inotify",
	"TestRefusedVolumes":   "what cannot be is refused",
}

// run is what one handler's log tells.
type run struct {
	handler, version string
	results          map[string]string
	failed           bool
}

// matrix is all that was run; the rows are in the order in which they were first met.
type matrix struct {
	runs           []run
	tests, volumes []string
}

func main() {
	commit := flag.String("commit", "", "commit that was tested")
	doc := flag.String("doc", "", "document whose section is replaced by the table of volumes")
	flag.Parse()
	if err := report(flag.Args(), *commit, *doc); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func report(args []string, commit, doc string) error {
	var m matrix
	for _, arg := range args {
		handler, file, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q is not HANDLER=LOG", arg)
		}
		if err := m.read(handler, file); err != nil {
			return err
		}
	}
	if len(m.tests) > 0 {
		fmt.Print("\n", m.table("test", m.tests))
	}
	if len(m.volumes) > 0 {
		text := m.table("volume", m.volumes)
		fmt.Print("\n", text)
		if doc != "" {
			if err := replaceSection(doc, m.preface(commit)+text); err != nil {
				return err
			}
		}
	}
	for _, r := range m.runs {
		if r.failed || len(r.results) == 0 {
			return fmt.Errorf("handler %s: failed, or nothing was run", r.handler)
		}
	}
	return nil
}

var (
	// What is further in is the output of tests inside guests.
	resultLine  = regexp.MustCompile(`^(?:    )?--- (PASS|FAIL|SKIP): (\S+) \(([\d.]+)s\)`)
	critestLine = regexp.MustCompile(`^(\d+ specs) passed`)
)

func (m *matrix) read(handler, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := run{handler: handler, results: map[string]string{}}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		if version, ok := strings.CutPrefix(line, "== "+handler+": "); ok {
			r.version = version
		}
		if found := critestLine.FindStringSubmatch(line); found != nil {
			m.tests = add(m.tests, "critest")
			r.results["critest"] = found[1]
		}
		if found := resultLine.FindStringSubmatch(line); found != nil {
			m.note(&r, found[1], found[2], found[3])
		}
	}
	m.runs = append(m.runs, r)
	return lines.Err()
}

// note keeps one result.
func (m *matrix) note(r *run, result, test, seconds string) {
	r.failed = r.failed || result == "FAIL"
	top, sub, isSub := strings.Cut(test, "/")
	name, said := top, map[string]string{"PASS": "passed", "FAIL": "**failed**", "SKIP": "skipped"}[result]
	switch title, isVolume := titles[top]; {
	case isSub && top == kinds && !strings.Contains(sub, "/"):
		name = strings.ReplaceAll(sub, "_", " ")
		m.volumes = add(m.volumes, name)
	case isSub, strings.HasSuffix(top, "InGuest"):
		return
	case isVolume:
		name = title
		m.volumes = add(m.volumes, name)
	default:
		m.tests = add(m.tests, name)
		said += ", " + strings.Split(seconds, ".")[0] + " s"
	}
	r.results[name] = said
}

func add(list []string, name string) []string {
	if slices.Contains(list, name) {
		return list
	}
	return append(list, name)
}

func (m *matrix) table(what string, rows []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s |", what)
	for _, r := range m.runs {
		fmt.Fprintf(&b, " `%s` |", r.handler)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(m.runs)) + "\n")
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s |", row)
		for _, r := range m.runs {
			said := r.results[row]
			if said == "" {
				said = "not run"
			}
			fmt.Fprintf(&b, " %s |", said)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// preface says what was run.
func (m *matrix) preface(commit string) string {
	var versions []string
	for _, r := range m.runs {
		versions = append(versions, fmt.Sprintf("`%s` is %s", r.handler, r.version))
	}
	return fmt.Sprintf("`make lab-test` at commit %s, %s, under nested KVM: %s.\n\n", commit, time.Now().UTC().Format(time.DateOnly), strings.Join(versions, ", "))
}

// replaceSection puts text below the heading, up to the next one.
func replaceSection(doc, text string) error {
	raw, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
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
