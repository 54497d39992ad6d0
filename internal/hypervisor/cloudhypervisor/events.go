package cloudhypervisor

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
)

// maxEvent bounds one event.
const maxEvent = 64 << 10

// event is what Cloud Hypervisor tells by itself.
type event struct {
	Source     string            `json:"source"`
	Event      string            `json:"event"`
	Properties map[string]string `json:"properties"`
}

// readEvents hands on events until their end; what is no event is passed over.
func readEvents(r io.Reader, observe func(event)) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, maxEvent)
	scanner.Split(splitEvents)
	for scanner.Scan() {
		var e event
		if json.Unmarshal(scanner.Bytes(), &e) == nil {
			observe(e)
		}
	}
	// Events that cannot be taken apart are drained, so that nobody waits.
	io.Copy(io.Discard, r)
}

// splitEvents: an empty line ends an event.
func splitEvents(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.Index(data, []byte("\n\n")); i >= 0 {
		return i + 2, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
