package store

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type thing struct {
	Name string
	N    int
}

func open(t *testing.T) (*Store[thing], string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "things")
	s, err := Open[thing](dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func TestPutLoadDelete(t *testing.T) {
	s, dir := open(t)
	want := map[string]thing{"a": {"one", 1}, "b": {"two", 2}}
	for id, r := range want {
		if err := s.Put(id, thing{"old", 0}); err != nil {
			t.Fatal(err)
		}
		if err := s.PutSoon(id, r); err != nil {
			t.Fatal(err)
		}
	}
	got, corrupt, err := s.Load()
	if err != nil || len(corrupt) != 0 || !maps.Equal(got, want) {
		t.Fatalf("got %v, %v, %v", got, corrupt, err)
	}
	for range 2 {
		if err := s.Delete("a"); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 || entries[0].Name() != "b.json" || entries[1].Name() != "b.soon" {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestLoadMovesDamageAside(t *testing.T) {
	s, dir := open(t)
	if err := s.Put("good", thing{"x", 1}); err != nil {
		t.Fatal(err)
	}
	damaged := map[string]string{
		"empty":    "",
		"half":     `{"version":1,"id":"half","rec`,
		"newer":    `{"version":2,"id":"newer","record":{}}`,
		"other":    `{"version":1,"id":"good","record":{}}`,
		"trailing": `{"version":1,"id":"trailing","record":{}}{}`,
		"type":     `{"version":1,"id":"type","record":[]}`,
		"huge":     strings.Repeat(" ", MaxSize+1),
	}
	for id, content := range damaged {
		if err := os.WriteFile(filepath.Join(dir, id+".json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	temp := filepath.Join(dir, "good.json.tmp-1")
	if err := os.WriteFile(temp, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	records, corrupt, err := s.Load()
	if err != nil || len(records) != 1 || records["good"].N != 1 {
		t.Fatalf("got %v, %v", records, err)
	}
	var ids []string
	for _, c := range corrupt {
		ids = append(ids, c.ID)
		if _, err := os.Stat(c.Path); err != nil || filepath.Base(filepath.Dir(c.Path)) != "corrupt" {
			t.Errorf("%s was not moved aside: %v", c.Path, err)
		}
	}
	if slices.Sort(ids); !slices.Equal(ids, slices.Sorted(maps.Keys(damaged))) {
		t.Errorf("reported %v", ids)
	}
	if _, err := os.Stat(temp); !os.IsNotExist(err) {
		t.Errorf("temporary file: %v", err)
	}
	if _, corrupt, err := s.Load(); err != nil || len(corrupt) != 0 {
		t.Errorf("second load: %v, %v", corrupt, err)
	}
}

// TestLostSoon: what a crash of the machine leaves of a record that was not waited for is empty, cut or not there. What was
// waited for counts then.
func TestLostSoon(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "cut": `{"version":1,"id":"a","rec`, "zeros": strings.Repeat("\x00", 40)} {
		t.Run(name, func(t *testing.T) {
			s, dir := open(t)
			if err := errors.Join(s.Put("a", thing{"durable", 1}), s.PutSoon("a", thing{"soon", 2}), s.PutSoon("never", thing{"soon", 3})); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"a.soon", "never.soon"} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			records, corrupt, err := s.Load()
			if err != nil || len(corrupt) != 2 || !maps.Equal(records, map[string]thing{"a": {"durable", 1}}) {
				t.Errorf("got %v, %v, %v", records, corrupt, err)
			}
			if records, corrupt, err := s.Load(); err != nil || len(corrupt) != 0 || len(records) != 1 {
				t.Errorf("again: %v, %v, %v", records, corrupt, err)
			}
		})
	}
}

// TestPutEndsSoon: a record that was waited for is not hidden by one that was not and is older.
func TestPutEndsSoon(t *testing.T) {
	s, _ := open(t)
	if err := errors.Join(s.PutSoon("a", thing{"soon", 1}), s.Put("a", thing{"durable", 2})); err != nil {
		t.Fatal(err)
	}
	if records, _, err := s.Load(); err != nil || records["a"].N != 2 {
		t.Errorf("got %v, %v", records, err)
	}
	if err := errors.Join(s.PutSoon("a", thing{"soon", 3}), s.Delete("a")); err != nil {
		t.Fatal(err)
	}
	if records, _, err := s.Load(); err != nil || len(records) != 0 {
		t.Errorf("got %v, %v", records, err)
	}
}

func TestBounds(t *testing.T) {
	s, dir := open(t)
	if err := s.Put("a", thing{Name: strings.Repeat("x", MaxSize)}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("too large: %v", err)
	}
	for _, id := range []string{"", "../x", "a/b", ".hidden", "x.tmp-1", strings.Repeat("a", 129)} {
		if err := s.Put(id, thing{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestPutFailureLeavesTheOldRecord(t *testing.T) {
	s, dir := open(t)
	if err := os.Mkdir(filepath.Join(dir, "a.json"), 0o700); err != nil { // rename onto a directory fails
		t.Fatal(err)
	}
	if err := s.Put("a", thing{}); err == nil {
		t.Fatal("no error")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestNames(t *testing.T) {
	var n Names
	if err := n.Reserve("x", "1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Reserve("x", "1"); err != nil {
		t.Error(err)
	}
	if err := n.Reserve("x", "2"); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), `"1"`) {
		t.Errorf("got %v", err)
	}
	n.Release("x", "2")
	if err := n.Reserve("x", "2"); err == nil {
		t.Error("another's release freed the name")
	}
	n.Release("x", "1")
	if err := n.Reserve("x", "2"); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	good, err := encode(1, "a", thing{"x", 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"id":"a","record":null}`))
	f.Add([]byte(`{"version":1e9,"id":"a"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		record, err := decode[thing](1, "a", data)
		if err != nil {
			return
		}
		again, err := encode(1, "a", record)
		if err != nil {
			t.Skip()
		}
		if back, err := decode[thing](1, "a", again); err != nil || back != record {
			t.Errorf("%+v came back as %+v, %v", record, back, err)
		}
	})
}
