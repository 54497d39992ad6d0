package image

import (
	"io"
	"sync"
)

const (
	aheadChunk  = 256 << 10
	aheadChunks = 4
)

// readAhead reads from another reader in a goroutine of its own, so that decompressing a layer and writing what it
// holds go on side by side. It is for one reader; the goroutine ends with the source or with Close.
type readAhead struct {
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

func newReadAhead(source io.Reader) *readAhead {
	r := &readAhead{full: make(chan chunk), empty: make(chan []byte, aheadChunks), stop: make(chan struct{})}
	for range aheadChunks {
		r.empty <- make([]byte, aheadChunk)
	}
	r.wg.Go(func() { r.fill(source) })
	return r
}

func (r *readAhead) fill(source io.Reader) {
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
func (r *readAhead) Read(p []byte) (int, error) {
	for r.at == len(r.now.data) {
		if r.now.err != nil {
			return 0, r.now.err
		}
		if r.now.data != nil {
			r.empty <- r.now.data[:aheadChunk]
		}
		r.now, r.at = <-r.full, 0
	}
	n := copy(p, r.now.data[r.at:])
	r.at += n
	return n, nil
}

// Close ends the goroutine and waits for it. The source may be closed after that.
func (r *readAhead) Close() {
	close(r.stop)
	r.wg.Wait()
}
