// Package readahead reads from a reader ahead of who reads.
//
// A [Reader] owns a goroutine and a megabyte of buffers, until it is closed. The package imports nothing of ours.
package readahead

import (
	"io"
	"sync"
)

const (
	chunkSize = 256 << 10
	chunks    = 4
)

// Reader reads from another reader in a goroutine of its own, so that decompressing a layer and writing what it
// holds go on side by side. It is for one reader; the goroutine ends with the source or with Close.
type Reader struct {
	full  chan chunk
	empty chan []byte
	stop  chan struct{}
	wg    sync.WaitGroup
	now   chunk
	at    int // in now.data
}

type chunk struct {
	data []byte
	err  error // after data
}

// New begins to read.
func New(source io.Reader) *Reader {
	r := &Reader{full: make(chan chunk), empty: make(chan []byte, chunks), stop: make(chan struct{})}
	for range chunks {
		r.empty <- make([]byte, chunkSize)
	}
	r.wg.Go(func() { r.fill(source) })
	return r
}

func (r *Reader) fill(source io.Reader) {
	for {
		var c chunk
		select {
		case buf := <-r.empty:
			n := 0
			for n < len(buf) && c.err == nil {
				var m int
				m, c.err = source.Read(buf[n:])
				n += m
			}
			c.data = buf[:n]
		case <-r.stop:
			return
		}
		select {
		case r.full <- c:
		case <-r.stop:
			return
		}
		if c.err != nil {
			return
		}
	}
}

// Read gives the source's error after all bytes that came before it, and again each time after that.
func (r *Reader) Read(p []byte) (int, error) {
	for r.at == len(r.now.data) {
		if r.now.err != nil {
			return 0, r.now.err
		}
		if r.now.data != nil {
			r.empty <- r.now.data[:chunkSize]
		}
		r.now, r.at = <-r.full, 0
	}
	n := copy(p, r.now.data[r.at:])
	r.at += n
	return n, nil
}

// Close ends the goroutine and waits for it. The source may be closed after that.
func (r *Reader) Close() {
	close(r.stop)
	r.wg.Wait()
}
