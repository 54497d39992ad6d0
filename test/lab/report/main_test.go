package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const log = `== fc: Firecracker v1.16.1
== suite pods
=== RUN   TestStreams
--- PASS: TestStreams (69.72s)
    --- PASS: TestStreams/spdy_exec (2.08s)
96 specs passed
--- PASS: TestVolumeKinds (194.68s)
    --- PASS: TestVolumeKinds/hostPath_directory (4.12s)
    --- FAIL: TestVolumeKinds/64-bit_sizes (3.78s)
        --- FAIL: TestReloadInGuest (30.20s)
--- SKIP: TestBlockVolumes (0.00s)
== end
`

func TestReport(t *testing.T) {
	file, doc := filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(doc, []byte("# A\n\n"+heading+"\nold\n\n## Next\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := report([]string{"fc=" + file}, "abc", doc); err == nil || !strings.Contains(err.Error(), "handler fc") {
		t.Errorf("a test failed, and the report says %v", err)
	}
	got, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"commit abc", "`fc` is Firecracker v1.16.1", "| volume | `fc` |", "| hostPath directory | passed |", "| 64-bit sizes | **failed** |",
		"| block PVC, raw and with a file system | skipped |", "\n\n## Next\n",
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("the document lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(string(got), "old") || strings.Contains(string(got), "TestStreams") || strings.Contains(string(got), "InGuest") {
		t.Errorf("the document has too much:\n%s", got)
	}
	var m matrix
	if err := m.read("fc", file); err != nil {
		t.Fatal(err)
	}
	if text := m.table("test", m.tests); !strings.Contains(text, "| TestStreams | passed, 69 s |") || !strings.Contains(text, "| critest | 96 specs |") {
		t.Errorf("tests:\n%s", text)
	}
}
