package vmm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// maxHead bounds the lines before a response's body, maxBody the body.
	maxHead, maxBody = 8 << 10, 1 << 20
	// maxMessage is how much of a VMM's answer is told.
	maxMessage = 500
	// grace is how long an answer may take after its caller's time.
	grace = 5 * time.Second
)

// API is one connection to a VMM that speaks HTTP with JSON over a Unix socket. Requests are made one after another. One
// that is cut off ends the connection: nobody knows what the answer to the next would be. So a request whose caller has given
// it up is waited for all the same, for a while.
type API struct {
	name  string
	conn  *net.UnixConn
	r     *bufio.Reader
	grace time.Duration

	turn   chan struct{} // holds a token for whoever may use the connection
	broken error
}

// APIError is a VMM's refusal.
type APIError struct {
	Status  int
	Message string
}

func (e *APIError) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Message) }

// Unwrap classifies it.
func (e *APIError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// NotAsked is an error for which a VMM was not asked for anything.
type NotAsked struct{ Err error }

func (e NotAsked) Error() string { return e.Err.Error() }

// Unwrap is the error.
func (e NotAsked) Unwrap() error { return e.Err }

// Undone tells whether an error means that the VMM has not done what it was asked for, which otherwise nobody knows.
func Undone(err error) bool {
	var refused *APIError
	var notAsked NotAsked
	return errors.As(err, &refused) || errors.As(err, &notAsked)
}

// NewAPI takes over a connection to the VMM that is called name.
func NewAPI(name string, conn *net.UnixConn) *API {
	a := &API{name: name, conn: conn, r: bufio.NewReaderSize(conn, maxHead), grace: grace, turn: make(chan struct{}, 1)}
	a.turn <- struct{}{}
	return a
}

// Close ends the connection.
func (a *API) Close() error { return a.conn.Close() }

// Do sends a request with a body, where it is not nil, and files, and returns the answer's body. A refusal is an
// *APIError. When the connection has ended the error is Unavailable.
func (a *API) Do(ctx context.Context, method, path string, body any, files ...*os.File) ([]byte, error) {
	answer, err := a.do(ctx, method, path, body, files)
	if err != nil {
		return nil, fmt.Errorf("%s: %s %s: %w", a.name, method, path, err)
	}
	return answer, nil
}

func (a *API) do(ctx context.Context, method, path string, body any, files []*os.File) ([]byte, error) {
	select {
	case <-a.turn:
		defer func() { a.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, NotAsked{Err: fmt.Errorf("not asked: %w", context.Cause(ctx))}
	}
	if a.broken != nil {
		return nil, fmt.Errorf("the connection has ended: %w: %w", a.broken, errdefs.ErrUnavailable)
	}
	request, err := encodeRequest(method, path, body)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, NotAsked{Err: fmt.Errorf("not asked: %w", context.Cause(ctx))}
	}
	a.conn.SetDeadline(time.Time{})
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		a.conn.SetDeadline(time.Now().Add(a.grace))
	})
	var status int
	var answer []byte
	if err = a.send(request, files); err == nil {
		status, answer, err = readResponse(a.r)
	}
	if !stop() {
		<-interrupted // or it would interrupt the next request
		if err != nil {
			err = context.Cause(ctx)
			a.broken = err
			a.conn.Close()
			return nil, fmt.Errorf("no answer: %w", err)
		}
	}
	if err != nil {
		a.broken = err
		a.conn.Close()
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	if status < 200 || status > 299 {
		return nil, &APIError{Status: status, Message: message(answer)}
	}
	return answer, nil
}

func encodeRequest(method, path string, body any) ([]byte, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n", method, path)
	if body != nil {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(data))
	}
	b.WriteString("\r\n")
	b.Write(data)
	return b.Bytes(), nil
}

// send writes a request; the files go with its first byte.
func (a *API) send(request []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := a.conn.Write(request)
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	n, _, err := a.conn.WriteMsgUnix(request, syscall.UnixRights(fds...), nil)
	if err == nil && n < len(request) {
		_, err = a.conn.Write(request[n:])
	}
	return err
}

// readResponse reads one response. It trusts no length.
func readResponse(r *bufio.Reader) (status int, body []byte, err error) {
	status, err = readStatus(r)
	if err != nil {
		return 0, nil, err
	}
	length, head := 0, 0
	for {
		line, err := readLine(r)
		if err != nil {
			return 0, nil, err
		}
		if line == "" {
			break
		}
		if head += len(line); head > maxHead {
			return 0, nil, errors.New("an answer with too many headers")
		}
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.ToLower(key) {
		case "content-length":
			if length, err = strconv.Atoi(value); err != nil || length < 0 || length > maxBody {
				return 0, nil, fmt.Errorf("an answer of %.20q bytes", value)
			}
		case "transfer-encoding":
			return 0, nil, fmt.Errorf("an answer in transfer encoding %.20q", value)
		}
	}
	body = make([]byte, length)
	_, err = io.ReadFull(r, body)
	return status, body, err
}

func readStatus(r *bufio.Reader) (int, error) {
	line, err := readLine(r)
	if err != nil {
		return 0, err
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if err != nil || !strings.HasPrefix(version, "HTTP/1.") || status < 100 || status > 599 {
		return 0, fmt.Errorf("an answer that begins with %.40q", line)
	}
	return status, nil
}

// readLine is bounded by the reader's size.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(line)), nil
}

// message finds the text in a refusal: {"fault_message": "..."}, or a list of causes.
func message(body []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	var causes []string
	text := string(body)
	if json.Unmarshal(body, &fault) == nil && fault.Message != "" {
		text = fault.Message
	} else if json.Unmarshal(body, &causes) == nil {
		text = strings.Join(causes, ": ")
	}
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	return text
}
