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

// joined is how much of a frame goes out with its header: what a virtio-serial port takes in one write.
const joined = 32<<10 - frameHeader

// guard lets only those yamux frames through that this package's peers send. yamux would otherwise answer
// each ping in a goroutine of its own and queue each stream that a peer opens, without a bound. Outwards it puts a
// frame's header and body together, which yamux writes one by one: each write to a port is an exit of the machine
// and an interrupt. Reading and writing may overlap; yamux does each from one goroutine.
type guard struct {
	io.ReadWriteCloser
	mayOpen bool   // the peer may open streams
	out     []byte // a header whose body has not been written yet

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

// Write holds the header of a frame with a body back until the body comes, which is the next write.
func (g *guard) Write(p []byte) (int, error) {
	if len(g.out) == 0 {
		if len(p) == frameHeader && p[1] == frameData && binary.BigEndian.Uint32(p[8:]) > 0 {
			g.out = append(g.out, p...)
			return len(p), nil
		}
		return g.ReadWriteCloser.Write(p)
	}
	n := min(len(p), joined)
	g.out = append(g.out, p[:n]...)
	_, err := g.ReadWriteCloser.Write(g.out)
	g.out = g.out[:0]
	if err == nil && n < len(p) {
		_, err = g.ReadWriteCloser.Write(p[n:])
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
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
