package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// maxMessage bounds one message of QEMU, in bytes. The largest answers to commands that we use have a few
// kilobytes.
const maxMessage = 1 << 20

// Event is something that happened in QEMU without having been asked for.
type Event struct {
	Name string
	Data json.RawMessage
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// Unwrap gives the class of the error.
func (e *Error) Unwrap() error {
	switch e.Class {
	case "DeviceNotFound":
		return errdefs.ErrNotFound
	case "CommandNotFound":
		return errdefs.ErrNotImplemented
	}
	return errdefs.ErrInternal
}

type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// message is what QEMU sends: a greeting, an event, or an answer with an id and either Return or Error.
type message struct {
	Greeting json.RawMessage
	Event    *Event
	ID       uint64
	Return   json.RawMessage
	Error    *Error
}

// readMessage reads one line. A line over maxMessage is an error.
func readMessage(r *bufio.Reader) (message, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxMessage {
			return message{}, fmt.Errorf("message exceeds %d bytes", maxMessage)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return message{}, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return decode(line)
		}
	}
}

// decode reads a message that is one of the kinds, and nothing between them.
func decode(line []byte) (message, error) {
	var wire struct {
		QMP    json.RawMessage `json:"QMP"`
		Event  string          `json:"event"`
		Data   json.RawMessage `json:"data"`
		ID     *uint64         `json:"id"`
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(line, &wire); err != nil {
		return message{}, fmt.Errorf("decode message: %w", err)
	}
	switch {
	case wire.QMP != nil:
		return message{Greeting: wire.QMP}, nil
	case wire.Event != "":
		return message{Event: &Event{Name: wire.Event, Data: wire.Data}}, nil
	case wire.ID == nil && wire.Error != nil:
		return message{}, fmt.Errorf("QEMU did not understand: %w", wire.Error)
	case wire.ID == nil || (wire.Return == nil) == (wire.Error == nil):
		return message{}, errors.New("decode message: neither greeting nor event nor answer")
	}
	return message{ID: *wire.ID, Return: wire.Return, Error: wire.Error}, nil
}
