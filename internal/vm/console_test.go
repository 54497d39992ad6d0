package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConsoleIsBounded(t *testing.T) {
	c, err := openConsole(filepath.Join(t.TempDir(), "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	line := []byte(strings.Repeat("x", 999) + "\n")
	for range 5000 {
		c.Write(line)
	}
	c.Write([]byte("\x1b[31mlast\xff words\r\n"))
	if len(c.tail) > consoleTail {
		t.Errorf("tail of %d bytes", len(c.tail))
	}
	for _, path := range []string{c.path, c.path + ".old"} {
		if info, err := os.Stat(path); err != nil || info.Size() > consoleFile {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if words := c.lastWords(); !strings.HasSuffix(words, "[31mlast words") || strings.Count(words, "\n") != lastLines-1 {
		t.Errorf("last words = %q", words)
	}
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte("a\nb\r\n\x1b[0m"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &console{}
		c.Write(data)
		if strings.ContainsAny(c.lastWords(), "\x1b\r\x00") {
			t.Error("control characters")
		}
	})
}
