package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func newLog(t testing.TB) *Log {
	t.Helper()
	l, err := OpenLog(filepath.Join(t.TempDir(), "0.log"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func content(t testing.TB, l *Log) string {
	t.Helper()
	data, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestLogRecords(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	tests := []struct {
		name   string
		writes []string
		want   []string
	}{
		{"line", []string{"hello\n"}, []string{"F hello"}},
		{"two in one write", []string{"a\nb\n"}, []string{"F a", "F b"}},
		{"line in pieces", []string{"he", "llo", "\n"}, []string{"F hello"}},
		{"empty lines", []string{"\n\n"}, []string{"F ", "F "}},
		{"unfinished", []string{"a\nbc"}, []string{"F a", "P bc"}},
		{"longest line", []string{long + "\n"}, []string{"F " + long}},
		{"longest line, end later", []string{long, "\n"}, []string{"F " + long}},
		{"split", []string{long + "y\n"}, []string{"P " + long, "F y"}},
		{"split in pieces", []string{long, "y", "z\n"}, []string{"P " + long, "F yz"}},
		{"carriage return stays", []string{"a\r\n"}, []string{"F a\r"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLog(t)
			s := l.Stream("stdout")
			s.now = func() time.Time { return time.Date(2016, 10, 6, 0, 17, 9, 66979, time.FixedZone("x", 3600)) }
			for _, w := range tt.writes {
				s.Write([]byte(w))
			}
			s.Close()
			var want strings.Builder
			for _, record := range tt.want {
				fmt.Fprintf(&want, "2016-10-05T23:17:09.000066979Z stdout %s\n", record)
			}
			if got := content(t, l); got != want.String() {
				t.Errorf("got %.300q, want %.300q", got, want.String())
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReopen rotates the log over and over while two streams write, and wants every line once and in order.
func TestReopen(t *testing.T) {
	l := newLog(t)
	const lines = 5000
	var writers sync.WaitGroup
	for _, name := range []string{"stdout", "stderr"} {
		writers.Go(func() {
			s := l.Stream(name)
			for i := range lines {
				fmt.Fprintf(s, "%d\n", i)
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	var parts []string
	for rotating := true; rotating; {
		select {
		case <-done:
			rotating = false
		default:
		}
		old := fmt.Sprintf("%s.%d", l.path, len(parts))
		if err := os.Rename(l.path, old); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, old)
	}
	next := map[string]int{}
	record := regexp.MustCompile(`(?m)^\S+Z (stdout|stderr) F (\d+)$`)
	for _, part := range parts {
		data, err := os.ReadFile(part)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range record.FindAllStringSubmatch(string(data), -1) {
			if want := fmt.Sprint(next[m[1]]); m[2] != want {
				t.Fatalf("%s: line %s, want %s", m[1], m[2], want)
			}
			next[m[1]]++
		}
	}
	if next["stdout"] != lines || next["stderr"] != lines {
		t.Errorf("lines = %v, want %d each", next, lines)
	}
}

func TestReopenAfterClose(t *testing.T) {
	l, err := OpenLog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// Nobody would close what it opens.
	if err := l.Reopen(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reopen: %v", err)
	}
}

func TestLogOutOfSpace(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("SKIPPED: no /dev/full")
	}
	l := newLog(t)
	good := l.file
	l.file = full
	s := l.Stream("stdout")
	fmt.Fprintln(s, "lost")
	l.file = good
	fmt.Fprintln(s, "kept")
	if got := content(t, l); !strings.HasSuffix(got, "F kept\n") {
		t.Errorf("log = %q", got)
	}
	if err := l.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Close = %v, want the reason of the loss", err)
	}
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	big := bytes.Repeat([]byte("b"), MaxFrame+1)
	if _, err := (FrameWriter{&b, KindStdout}).Write(big); err != nil {
		t.Fatal(err)
	}
	WriteFrames(&b, KindEOF, nil)
	r := NewFrameReader(&b)
	var got []byte
	for {
		kind, p, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if kind == KindEOF {
			break
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, big) {
		t.Error("content differs")
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Errorf("end = %v, want io.EOF", err)
	}
	for _, bad := range [][]byte{{9, 0, 0, 0, 0}, {0, 0xff, 0, 0, 0}} {
		if _, _, err := NewFrameReader(bytes.NewReader(bad)).Next(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("frame %v: %v, want InvalidArgument", bad, err)
		}
	}
	if _, _, err := NewFrameReader(bytes.NewReader([]byte{0, 0, 0, 0, 2, 'x'})).Next(); err != io.ErrUnexpectedEOF {
		t.Errorf("truncated frame: %v", err)
	}
}

func TestFanout(t *testing.T) {
	var f Fanout
	var both, out bytes.Buffer
	v1, v2 := f.Join(true, true), f.Join(true, false)
	f.Write(KindStdout, []byte("o"))
	f.Write(KindStderr, []byte("e"))
	f.Close()
	if err := v1.Run(&both); err != nil {
		t.Fatal(err)
	}
	if err := v2.Run(&out); err != nil {
		t.Fatal(err)
	}
	if kinds := frameKinds(t, &both); !slices.Equal(kinds, []FrameKind{1, 2, 4}) {
		t.Errorf("frames of both = %v", kinds)
	}
	if kinds := frameKinds(t, &out); !slices.Equal(kinds, []FrameKind{1, 4}) {
		t.Errorf("frames of stdout = %v", kinds)
	}
	var late bytes.Buffer
	f.Join(true, true).Run(&late)
	if kinds := frameKinds(t, &late); !slices.Equal(kinds, []FrameKind{4}) {
		t.Errorf("frames after the end = %v", kinds)
	}
}

func frameKinds(t *testing.T, r io.Reader) (kinds []FrameKind) {
	t.Helper()
	for fr := NewFrameReader(r); ; {
		kind, _, err := fr.Next()
		if err == io.EOF {
			return kinds
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, kind)
	}
}

func TestFanoutDropsSlowViewer(t *testing.T) {
	var f Fanout
	v := f.Join(true, true)
	chunk := make([]byte, 32<<10)
	for range viewerBuffer/len(chunk) + 2 {
		f.Write(KindStdout, chunk)
	}
	if len(f.viewers) != 0 {
		t.Fatal("the viewer was not dropped")
	}
	var b bytes.Buffer
	if err := v.Run(&b); err != nil {
		t.Fatal(err)
	}
	kinds := frameKinds(t, &b)
	if kinds[len(kinds)-1] != KindError {
		t.Errorf("last frame = %v, want ERROR", kinds[len(kinds)-1])
	}
}

func TestViewerLeaves(t *testing.T) {
	var f Fanout
	v := f.Join(true, true)
	done := make(chan error)
	go func() { done <- v.Run(io.Discard) }()
	v.Leave()
	if err := <-done; err == nil {
		t.Error("Run = nil after Leave")
	}
}

func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := OpenFIFOReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "input")
	w.Close()
	r.CloseInput()
	if data, err := io.ReadAll(r); string(data) != "input" || err != nil {
		t.Errorf("read %q, %v", data, err)
	}
	if _, err := OpenFIFOWriter("/dev/null"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a device: %v, want InvalidArgument", err)
	}
}

func FuzzFrameReader(f *testing.F) {
	f.Add(AppendFrame(nil, KindStdin, []byte("hello")))
	f.Add(AppendFrame(AppendFrame(nil, KindStdout, nil), KindEOF, nil))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewFrameReader(bytes.NewReader(data))
		var again []byte
		for {
			kind, p, err := r.Next()
			if err != nil {
				break
			}
			if len(p) > MaxFrame {
				t.Fatalf("payload of %d bytes", len(p))
			}
			again = AppendFrame(again, kind, p)
		}
		if !bytes.HasPrefix(data, again) {
			t.Error("frames do not encode to what was read")
		}
	})
}

// FuzzLogStream wants the content back from the records, however the output was cut.
func FuzzLogStream(f *testing.F) {
	f.Add([]byte("a\nb"), uint16(1))
	f.Add(bytes.Repeat([]byte("x"), 2*maxLine+1), uint16(1000))
	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		l := newLog(t)
		defer l.Close()
		s := l.Stream("stderr")
		for part := range slices.Chunk(data, int(cut)+1) {
			s.Write(part)
		}
		s.Close()
		var back []byte
		for line := range strings.Lines(content(t, l)) {
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(fields) != 4 || fields[1] != "stderr" || len(fields[3]) > maxLine {
				t.Fatalf("record %.100q", line)
			}
			back = append(back, fields[3]...)
			if fields[2] == "F" {
				back = append(back, '\n')
			}
		}
		if !bytes.Equal(back, data) {
			t.Error("content differs")
		}
	})
}

// BenchmarkLog is the budget of the log path: at least 50 MB/s with lines of 100 bytes.
func BenchmarkLog(b *testing.B) {
	l := newLog(b)
	defer l.Close()
	s := l.Stream("stdout")
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 320)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		s.Write(chunk)
		if err := l.file.Truncate(0); err != nil {
			b.Fatal(err)
		}
	}
}
