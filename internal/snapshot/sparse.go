package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096
	// checkInterval is after how many written bytes the free space is looked at again.
	checkInterval = 64 << 20
	// flushInterval is after how many written bytes the kernel is told to write them to the disk, which it does meanwhile: what a
	// layer waits for at its end is only the rest.
	flushInterval = 8 << 20
)

// freeSpace keeps a part of a file system free.
type freeSpace struct {
	fd      int    // of something on the file system
	reserve uint64 // bytes
	written int64  // bytes since it was looked at
}

func newFreeSpace(fd int) (*freeSpace, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, fmt.Errorf("free space: %w", err)
	}
	return &freeSpace{fd: fd, reserve: st.Blocks / minFreeDivide * uint64(st.Bsize), written: checkInterval}, nil
}

// use is ENOSPC where writing n bytes more would leave too little.
func (f *freeSpace) use(n int) error {
	if f.written += int64(n); f.written < checkInterval {
		return nil
	}
	f.written = 0
	return f.check()
}

func (f *freeSpace) check() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.fd, &st); err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	if st.Bavail*uint64(st.Bsize) < f.reserve {
		return fmt.Errorf("less than %d MiB are left free: %w", f.reserve>>20, syscall.ENOSPC)
	}
	return nil
}

// sparseFile writes no blocks of zeros at the end of a file, and stops before the file system is full.
type sparseFile struct {
	ctx    context.Context
	file   *os.File
	space  *freeSpace
	offset int64
	end    int64 // of what was written or skipped; beyond it all is zero
	hole   bool  // the end was skipped
	begun  int64 // of what was written and is not on its way to the disk
	dirty  int64 // how much that is
	err    error
}

func (s *sparseFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		s.offset = offset
	case io.SeekCurrent:
		s.offset += offset
	case io.SeekEnd:
		s.offset = s.end + offset
	}
	return s.offset, nil
}

func (s *sparseFile) Read(p []byte) (int, error) {
	n, err := s.file.ReadAt(p, s.offset)
	s.offset += int64(n)
	return n, err
}

// Write writes runs of blocks that hold data and leaves holes for those that do not.
func (s *sparseFile) Write(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.ctx.Err() // a few bytes of a sparse archive can stand for gigabytes
	}
	if s.err != nil {
		return 0, s.err
	}
	for done := 0; done < len(p); {
		n := s.run(p[done:])
		chunk := p[done : done+n]
		hole := isZero(chunk) && s.offset >= s.end
		if !hole {
			if s.err = s.writeAt(chunk); s.err != nil {
				return done, s.err
			}
		}
		s.offset += int64(n)
		if s.offset > s.end {
			s.end, s.hole = s.offset, hole
		}
		done += n
	}
	return len(p), nil
}

// run is the length of the longest prefix of p whose blocks are either all zero or all not.
func (s *sparseFile) run(p []byte) int {
	next := func(at int) int { return min(len(p), at+blockSize-int((s.offset+int64(at))%blockSize)) }
	n := next(0)
	zero := isZero(p[:n])
	for n < len(p) {
		m := next(n)
		if isZero(p[n:m]) != zero {
			break
		}
		n = m
	}
	return n
}

func (s *sparseFile) writeAt(p []byte) error {
	if err := s.space.use(len(p)); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(p, s.offset); err != nil {
		return err
	}
	if s.dirty += int64(len(p)); s.dirty < flushInterval {
		return nil
	}
	from, to := min(s.begun, s.offset), s.offset+int64(len(p))
	s.begun, s.dirty = to, 0
	if err := unix.SyncFileRange(int(s.file.Fd()), from, to-from, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return fmt.Errorf("begin to write to the disk: %w", err)
	}
	return nil
}

// finish gives the file its length, to whole blocks.
func (s *sparseFile) finish() error {
	return s.file.Truncate((s.end + blockSize - 1) / blockSize * blockSize)
}

// zeroBlock is compared with, never written.
var zeroBlock = make([]byte, blockSize)

func isZero(p []byte) bool {
	for len(p) > blockSize {
		if string(p[:blockSize]) != string(zeroBlock) {
			return false
		}
		p = p[blockSize:]
	}
	return string(p) == string(zeroBlock[:len(p)])
}
