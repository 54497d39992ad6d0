package transport

import (
	"bytes"
	"fmt"
	"io"
)

// greeting is what both sides of a pipe say before yamux starts; the last byte is the version.
const greeting = "pistis\x00\x01"

// greetGuest waits until the guest has opened its end of the pipe and answers it.
func greetGuest(pipe io.ReadWriter) error {
	if err := readGreeting(pipe); err != nil {
		return err
	}
	return writeGreeting(pipe)
}

// greetHost tells the host that the pipe is open and waits for its answer.
func greetHost(pipe io.ReadWriter) error {
	if err := writeGreeting(pipe); err != nil {
		return err
	}
	return readGreeting(pipe)
}

func writeGreeting(w io.Writer) error {
	if _, err := io.WriteString(w, greeting); err != nil {
		return fmt.Errorf("send greeting: %w", err)
	}
	return nil
}

// readGreeting reads exactly the greeting and skips nothing.
func readGreeting(r io.Reader) error {
	var got [len(greeting)]byte
	if _, err := io.ReadFull(r, got[:]); err != nil {
		return fmt.Errorf("wait for the peer's greeting: %w", err)
	}
	if !bytes.Equal(got[:], []byte(greeting)) {
		return fmt.Errorf("the peer's greeting %q is not %q: host and guest do not fit each other", got[:], greeting)
	}
	return nil
}
