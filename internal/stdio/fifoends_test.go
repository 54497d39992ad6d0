package stdio

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func newFIFOs(t *testing.T) (*Ends, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "stdio")
	e, err := NewFIFOs(dir, [3]bool{true, true, false}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e, dir
}

func openRunner(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFIFOEndsOutput: what was written is there although its writer has gone, and its going is the end.
func TestFIFOEndsOutput(t *testing.T) {
	e, dir := newFIFOs(t)
	if _, err := os.Stat(FIFO(dir, Stderr)); !os.IsNotExist(err) {
		t.Errorf("a FIFO that nobody wants: %v", err)
	}
	out := openRunner(t, FIFO(dir, Stdout), os.O_WRONLY)
	if _, err := out.WriteString("said\n"); err != nil {
		t.Fatal(err)
	}
	e.CloseChild()
	out.Close()
	got, err := io.ReadAll(e.Ours(Stdout))
	if err != nil || string(got) != "said\n" {
		t.Errorf("read %q: %v", got, err)
	}
}

// TestFIFOEndsInput: the input is not ready before its reader is, and ends with what was closed here.
func TestFIFOEndsInput(t *testing.T) {
	e, dir := newFIFOs(t)
	e.CloseChild()
	select {
	case <-e.InputReady():
		t.Fatal("the input is ready without a reader")
	default:
	}
	in := openRunner(t, FIFO(dir, Stdin), os.O_RDONLY|unix.O_NONBLOCK)
	<-e.InputReady()
	if _, err := e.Ours(Stdin).Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	e.CloseInput()
	got, err := io.ReadAll(in)
	if err != nil || string(got) != "typed\n" {
		t.Errorf("read %q: %v", got, err)
	}
}

// TestFIFOEndsInputEndsEarly: an input that was closed before there was a reader is empty.
func TestFIFOEndsInputEndsEarly(t *testing.T) {
	e, dir := newFIFOs(t)
	e.CloseInput()
	e.CloseChild()
	got, err := io.ReadAll(openRunner(t, FIFO(dir, Stdin), os.O_RDONLY))
	if err != nil || len(got) != 0 {
		t.Errorf("read %q: %v", got, err)
	}
	<-e.InputReady()
	if e.Ours(Stdin) != nil {
		t.Error("the input is open")
	}
}

// TestFIFOEndsClose: nobody waits for a reader any more when the ends were closed, before or while they were waited for.
func TestFIFOEndsClose(t *testing.T) {
	for name, before := range map[string]func(*Ends){"before": func(*Ends) {}, "meanwhile": (*Ends).CloseChild} {
		t.Run(name, func(t *testing.T) {
			e, _ := newFIFOs(t)
			before(e)
			e.Close()
			<-e.InputReady()
		})
	}
}

func TestFIFOEndsTwice(t *testing.T) {
	_, dir := newFIFOs(t)
	if _, err := NewFIFOs(dir, [3]bool{true, true, true}, false); !os.IsExist(errCause(err)) {
		t.Errorf("a second time in one directory: %v", err)
	}
	if _, err := os.Stat(FIFO(dir, Stdout)); err != nil {
		t.Errorf("the first one's FIFO: %v", err)
	}
}

func errCause(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}
