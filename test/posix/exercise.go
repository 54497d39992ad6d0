package posix

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// maxSize bounds the file of an exercise.
const maxSize = 1 << 20

// exercise is a file, and what must be in it.
type exercise struct {
	path    string
	fd      int
	random  *rand.Rand
	content []byte
	did     []string
}

// Exercise does n random things to a file: it writes, reads, maps, truncates, allocates, punches, copies, closes and opens,
// and compares what it sees with what it must see. The same seed does the same. It returns what is in the file then.
func Exercise(path string, seed uint64, n int) (content []byte, err error) {
	e := &exercise{path: path, random: rand.New(rand.NewPCG(seed, seed))}
	if e.fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(e.fd)) }()
	steps := []func() error{e.write, e.write, e.write, e.read, e.read, e.mapped, e.mappedWrite, e.truncate, e.allocate, e.punch, e.copy, e.reopen, e.sync}
	for i := range n {
		if err := steps[e.random.IntN(len(steps))](); err != nil {
			return nil, fmt.Errorf("seed %d, step %d: %w; before it: %q", seed, i, err, e.did[max(0, len(e.did)-8):])
		}
	}
	return e.content, errors.Join(e.check(0, len(e.content)), unix.Fsync(e.fd))
}

func (e *exercise) note(format string, args ...any) {
	e.did = append(e.did, fmt.Sprintf(format, args...))
}

// somewhere is a part of the file, or of what it may become.
func (e *exercise) somewhere(limit int) (off, length int) {
	if limit == 0 {
		return 0, 0
	}
	off = e.random.IntN(limit)
	return off, e.random.IntN(min(limit-off, 128<<10)) + 1
}

func (e *exercise) grow(size int) {
	if size > len(e.content) {
		e.content = append(e.content, make([]byte, size-len(e.content))...)
	}
}

func (e *exercise) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(e.random.Uint32())
	}
	return b
}

func (e *exercise) write() error {
	off, n := e.somewhere(maxSize)
	data := e.bytes(n)
	e.note("write %d at %d", n, off)
	e.grow(off + n)
	copy(e.content[off:], data)
	for len(data) > 0 {
		n, err := unix.Pwrite(e.fd, data, int64(off))
		if err != nil {
			return err
		}
		data, off = data[n:], off+n
	}
	return nil
}

// check reads a part and compares it.
func (e *exercise) check(off, n int) error {
	for n > 0 {
		b := make([]byte, min(n, 64<<10))
		got, err := unix.Pread(e.fd, b, int64(off))
		if err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("the file ends at %d, it has %d", off, len(e.content))
		}
		if !bytes.Equal(b[:got], e.content[off:off+got]) {
			return fmt.Errorf("what was read at %d differs", off)
		}
		off, n = off+got, n-got
	}
	var st unix.Stat_t
	if err := unix.Fstat(e.fd, &st); err != nil {
		return err
	}
	if st.Size != int64(len(e.content)) {
		return fmt.Errorf("size %d, want %d", st.Size, len(e.content))
	}
	return nil
}

func (e *exercise) read() error {
	off, n := e.somewhere(len(e.content))
	e.note("read %d at %d", n, off)
	return e.check(off, n)
}

func (e *exercise) withMap(do func(m []byte) error) error {
	if len(e.content) == 0 {
		return nil
	}
	m, err := unix.Mmap(e.fd, 0, len(e.content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	return errors.Join(do(m), unix.Munmap(m))
}

func (e *exercise) mapped() error {
	off, n := e.somewhere(len(e.content))
	e.note("map %d at %d", n, off)
	return e.withMap(func(m []byte) error {
		if !bytes.Equal(m[off:off+n], e.content[off:off+n]) {
			return fmt.Errorf("what is mapped at %d differs", off)
		}
		return nil
	})
}

func (e *exercise) mappedWrite() error {
	off, n := e.somewhere(len(e.content))
	e.note("write %d at %d through a map", n, off)
	data := e.bytes(n)
	return e.withMap(func(m []byte) error {
		copy(m[off:], data)
		copy(e.content[off:], data)
		return nil
	})
}

func (e *exercise) truncate() error {
	size := e.random.IntN(maxSize)
	e.note("truncate to %d", size)
	e.grow(size)
	e.content = e.content[:size:size]
	return unix.Ftruncate(e.fd, int64(size))
}

func (e *exercise) allocate() error {
	off, n := e.somewhere(maxSize)
	e.note("allocate %d at %d", n, off)
	err := unix.Fallocate(e.fd, 0, int64(off), int64(n))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	e.grow(off + n)
	return err
}

func (e *exercise) punch() error {
	off, n := e.somewhere(len(e.content))
	if n == 0 {
		return nil
	}
	e.note("punch %d at %d", n, off)
	err := unix.Fallocate(e.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	clear(e.content[off : off+n])
	return err
}

func (e *exercise) copy() error {
	from, n := e.somewhere(len(e.content))
	to := e.random.IntN(maxSize)
	if n = min(n, maxSize-to); n == 0 || from < to+n && to < from+n {
		return nil // nothing, or over itself
	}
	e.note("copy %d from %d to %d", n, from, to)
	at, dest := int64(from), int64(to)
	got, err := unix.CopyFileRange(e.fd, &at, e.fd, &dest, n, 0)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) {
		return nil
	}
	e.grow(to + got)
	copy(e.content[to:to+got], bytes.Clone(e.content[from:from+got]))
	return err
}

func (e *exercise) reopen() error {
	e.note("reopen")
	if err := unix.Close(e.fd); err != nil {
		return err
	}
	var err error
	e.fd, err = unix.Open(e.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	return errors.Join(err, e.check(0, len(e.content)))
}

func (e *exercise) sync() error {
	e.note("sync")
	return unix.Fdatasync(e.fd)
}
