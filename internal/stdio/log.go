package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	// maxLine is where a line is split, in bytes of content, as containerd does.
	maxLine = 16 << 10
	// logMode is the mode of a log file: the group of the log directory may collect it.
	logMode = 0o640

	// timeLayout is RFC 3339 up to the second; all nine digits of its fraction follow, so that records sort as text.
	timeLayout = "2006-01-02T15:04:05"
)

// Log is a container's log file in the CRI format: one record a line, as
// "2016-10-06T00:17:09.669794202Z stdout F text". It is for concurrent use; a record is never torn by another.
type Log struct {
	path string

	mu     sync.Mutex
	file   *os.File
	closed bool
	// out has the records of one Write of a stream.
	out []byte
	// torn: the last write failed in the middle of a record.
	torn bool
	// lost counts bytes of records that could not be written; failure is the first reason.
	lost    int64
	failure error
}

// OpenLog opens the file for appending and makes it where it is not there.
func OpenLog(path string) (*Log, error) {
	f, err := openLog(path)
	if err != nil {
		return nil, err
	}
	return &Log{path: path, file: f}, nil
}

func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, logMode)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// Reopen opens the path again, after the file was renamed away. What was written before it stays in the old file and
// what comes after goes to the new one. On error the log goes on as it was.
func (l *Log) Reopen() error {
	f, err := openLog(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errors.Join(fmt.Errorf("reopen log: %w", os.ErrClosed), f.Close())
	}
	old := l.file
	l.file, l.torn = f, false
	l.mu.Unlock()
	return old.Close()
}

// Close closes the file. It returns the first write error there was, with the number of bytes that were lost to it.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	err := l.file.Close()
	if l.failure != nil {
		err = errors.Join(fmt.Errorf("write log %s: %d bytes were lost: %w", l.path, l.lost, l.failure), err)
	}
	return err
}

// write appends whole records; the caller holds the lock. A failure must not stop the container, so that it is kept for
// Close.
func (l *Log) write(records []byte) {
	if l.torn {
		if _, err := l.file.Write([]byte{'\n'}); err != nil {
			l.fail(len(records), err)
			return
		}
		l.torn = false
	}
	n, err := l.file.Write(records)
	if err != nil {
		l.torn = n > 0 && records[n-1] != '\n'
		l.fail(len(records)-n, err)
	}
}

func (l *Log) fail(lost int, err error) {
	l.lost += int64(lost)
	if l.failure == nil {
		l.failure = err
	}
}

// Stream returns a writer of raw output; name is stdout or stderr. It belongs to one goroutine. Its Close writes what
// is left of an unfinished line and leaves the log open.
func (l *Log) Stream(name string) *LogStream {
	return &LogStream{log: l, name: name, now: time.Now}
}

// LogStream turns output into records.
type LogStream struct {
	log  *Log
	name string
	now  func() time.Time

	// line is the beginning of a line whose end has not come yet; always shorter than maxLine.
	line []byte
	// second is the formatted time without its fraction, of the second unix.
	second []byte
	unix   int64
	// stamp is the head of each record of one Write: time and stream.
	stamp []byte
}

// Write takes output as it comes. All complete lines in p are in the file when it returns; it never fails.
func (s *LogStream) Write(p []byte) (int, error) {
	n := len(p)
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	s.setStamp(s.now())
	s.log.out = s.log.out[:0]
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		switch room := maxLine - len(s.line); {
		case i >= 0 && i <= room:
			s.record('F', p[:i])
			p = p[i+1:]
		case i < 0 && len(p) <= room:
			s.line = append(s.line, p...)
			p = nil
		default:
			s.record('P', p[:room])
			p = p[room:]
		}
	}
	if len(s.log.out) > 0 {
		s.log.write(s.log.out)
	}
	if cap(s.log.out) > 256<<10 {
		s.log.out = nil
	}
	return n, nil
}

// Close writes an unfinished line as a partial record.
func (s *LogStream) Close() error {
	if len(s.line) == 0 {
		return nil
	}
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	s.setStamp(s.now())
	s.log.out = s.log.out[:0]
	s.record('P', nil)
	s.log.write(s.log.out)
	return nil
}

func (s *LogStream) record(tag byte, end []byte) {
	out := append(s.log.out, s.stamp...)
	out = append(out, tag, ' ')
	out = append(out, s.line...)
	out = append(out, end...)
	s.log.out = append(out, '\n')
	s.line = s.line[:0]
}

// setStamp formats the time once for all records of a Write: they arrived together.
func (s *LogStream) setStamp(t time.Time) {
	if unix := t.Unix(); unix != s.unix || s.second == nil {
		s.unix = unix
		s.second = t.UTC().AppendFormat(s.second[:0], timeLayout)
	}
	s.stamp = append(s.stamp[:0], s.second...)
	s.stamp = append(s.stamp, '.')
	for n, div := t.Nanosecond(), 100_000_000; div > 0; div /= 10 {
		s.stamp = append(s.stamp, byte('0'+n/div%10))
	}
	s.stamp = append(s.stamp, 'Z', ' ')
	s.stamp = append(s.stamp, s.name...)
	s.stamp = append(s.stamp, ' ')
}
