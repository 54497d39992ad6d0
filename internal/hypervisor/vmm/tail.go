package vmm

import (
	"strings"
	"sync"
	"unicode"
)

// Tail keeps the last bytes that were written to it.
type Tail struct {
	mu  sync.Mutex
	buf []byte
	max int
	cut bool // something before buf was dropped
	// noise: lines that contain it are not shown; empty for none.
	noise string
}

// NewTail keeps so many bytes. Lines that contain noise, where it is not empty, are not shown.
func NewTail(size int, noise string) *Tail { return &Tail{max: size, noise: noise} }

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if drop := len(t.buf) - t.max; drop > 0 {
		t.buf = append(t.buf[:0], t.buf[drop:]...)
		t.cut = true
	}
	return len(p), nil
}

// Lines returns the last lines, at most n, as printable text with " | " between them.
func (t *Tail) Lines(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(string(t.buf), "?"))
	all := strings.Split(text, "\n")
	if t.cut {
		all = all[1:] // the first line lost its beginning
	}
	var kept []string
	for _, line := range all {
		if line = strings.TrimSpace(line); line != "" && (t.noise == "" || !strings.Contains(line, t.noise)) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-n):], " | ")
}
