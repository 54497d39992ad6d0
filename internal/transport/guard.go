package transport

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The parts of yamux's framing that the guard looks at.
const (
	frameHeader = 12
	windowSize  = 256 << 10

	frameData   = 0
	framePing   = 2
	frameGoAway = 3

	flagSYN = 1
)

// guard lets only those yamux frames through that this package's peers send. yamux would otherwise answer
// each ping in a goroutine of its own and queue each stream that a peer opens, without a bound.
type guard struct {
	io.ReadWriteCloser
	mayOpen bool // the peer may open streams

	header [frameHeader]byte
	have   int    // bytes in header
	body   uint32 // bytes of the current frame's body that were not read yet
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.ReadWriteCloser.Read(p)
	if bad := g.scan(p[:n]); bad != nil {
		return 0, bad
	}
	return n, err
}

// scan follows the frames in p, which continues what was scanned before.
func (g *guard) scan(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			skip := min(uint64(g.body), uint64(len(p)))
			g.body -= uint32(skip)
			p = p[skip:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < frameHeader {
			return nil
		}
		g.have = 0
		if err := g.check(); err != nil {
			return err
		}
	}
	return nil
}

// check judges the complete header and notes how long the frame's body is.
func (g *guard) check() error {
	version, kind := g.header[0], g.header[1]
	flags := binary.BigEndian.Uint16(g.header[2:])
	length := binary.BigEndian.Uint32(g.header[8:])
	switch {
	case version != 0:
		return fmt.Errorf("multiplexed pipe: frame of version %d", version)
	case kind == framePing || kind > frameGoAway:
		return fmt.Errorf("multiplexed pipe: frame of type %d", kind)
	case flags&flagSYN != 0 && !g.mayOpen:
		return fmt.Errorf("multiplexed pipe: the peer may not open streams")
	case kind == frameData && length > windowSize:
		return fmt.Errorf("multiplexed pipe: frame of %d bytes exceeds the window of %d", length, windowSize)
	}
	if kind == frameData {
		g.body = length
	}
	return nil
}
