package vm

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"unicode"
)

const (
	// consoleTail is how much of the console is kept in memory, consoleFile how much in each of the two files.
	consoleTail = 64 << 10
	consoleFile = 1 << 20
	// oldSuffix ends the name of the file that was full.
	oldSuffix = ".old"
	// lastLines is how many lines of the console an error shows.
	lastLines = 12
)

// console keeps what the guest wrote to its console: the tail in memory and, within bounds, all of it in a file. The
// file is set aside once as path.old when it is full, so that at most 2 MiB are used.
type console struct {
	path string

	mu   sync.Mutex
	tail []byte
	file *os.File
	size int64
	err  error
}

func openConsole(path string) (*console, error) {
	c := &console{path: path}
	return c, c.open()
}

func (c *console) open() error {
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open console log: %w", err)
	}
	c.file, c.size = f, 0
	return nil
}

// Write never fails: the guest's console must not stand still because the host's disk is full.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	c.keep(p)
	if c.file == nil || c.err != nil {
		return n, nil
	}
	if c.size+int64(len(p)) > consoleFile {
		c.rotate()
	}
	if c.err == nil {
		var written int
		written, c.err = c.file.Write(p[:min(len(p), consoleFile)])
		c.size += int64(written)
	}
	return n, nil
}

func (c *console) keep(p []byte) {
	if len(p) > consoleTail {
		p = p[len(p)-consoleTail:]
	}
	if over := len(c.tail) + len(p) - consoleTail; over > 0 {
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	c.tail = append(c.tail, p...)
}

func (c *console) rotate() {
	c.file.Close()
	c.file = nil
	if c.err = os.Rename(c.path, c.path+oldSuffix); c.err == nil {
		c.err = c.open()
	}
}

// lastWords are the last lines, fit to be shown. Empty when there was no output.
func (c *console) lastWords() string {
	c.mu.Lock()
	text := string(c.tail)
	c.mu.Unlock()
	text = strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(text, ""))
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	return strings.Join(lines[max(0, len(lines)-lastLines):], "\n")
}

// discard removes the files: nobody asks for the console of a guest that ended as it should.
func (c *console) discard() {
	c.Close()
	os.Remove(c.path)
	os.Remove(c.path + oldSuffix)
}

// Close closes the file. Late output is still kept in memory.
func (c *console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return c.err
	}
	err := c.file.Close()
	c.file = nil
	return err
}
