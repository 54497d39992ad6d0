package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/task"
)

// maxSizeMessage bounds, in bytes, the JSON of one terminal size.
const maxSizeMessage = 1 << 10

// process runs a process, or joins one, until it ended or ctx did.
type process func(ctx context.Context, stdio task.Stdio, resize <-chan container.Size) error

// serveChannels serves a process over a WebSocket with the subprotocol v5.channel.k8s.io: every message begins with the
// number of its channel, and a message of 255 and a channel's number closes that channel, which is how the end of stdin
// gets through (KEP-4006). The library's own server of WebSockets ends at version 4.
func (s *Server) serveChannels(w http.ResponseWriter, r *http.Request, o remotecommand.Options, run process) {
	channel := func(wanted bool, kind wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return kind
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
			remotecommand.StreamStdIn:  channel(o.Stdin, wsstream.ReadChannel),
			remotecommand.StreamStdOut: channel(o.Stdout, wsstream.WriteChannel),
			remotecommand.StreamStdErr: channel(o.Stderr, wsstream.WriteChannel),
			remotecommand.StreamErr:    wsstream.WriteChannel,
			remotecommand.StreamResize: channel(o.TTY, wsstream.ReadChannel),
		}},
	})
	conn.SetIdleTimeout(s.idleTimeout)
	_, channels, err := conn.Open(w, r)
	if err != nil {
		return // the client was answered
	}
	ctx, cancel := context.WithCancel(r.Context())
	var resizing sync.WaitGroup
	defer resizing.Wait()
	defer conn.Close()
	defer cancel()

	stdio := task.Stdio{}
	if o.Stdin {
		stdio.Stdin = channels[remotecommand.StreamStdIn]
	}
	// The first message tells the client that the connection stands, whatever the process has to say.
	greet := channels[remotecommand.StreamErr]
	if o.Stderr {
		stdio.Stderr = channels[remotecommand.StreamStdErr]
		greet = channels[remotecommand.StreamStdErr]
	}
	if o.Stdout {
		stdio.Stdout = channels[remotecommand.StreamStdOut]
		greet = channels[remotecommand.StreamStdOut]
	}
	if _, err := greet.Write(nil); err != nil {
		return // the client has gone
	}
	var sizes chan container.Size
	if o.TTY {
		sizes = make(chan container.Size)
		resizing.Go(func() { readSizes(ctx, channels[remotecommand.StreamResize], sizes) })
	}
	err = run(ctx, stdio, sizes)
	_, _ = channels[remotecommand.StreamErr].Write(outcome(err)) // who has gone need not be told
}

// readSizes hands on the terminal sizes that a client sends, until it sends no more, or nonsense, or ctx ends.
func readSizes(ctx context.Context, r io.Reader, sizes chan<- container.Size) {
	defer close(sizes)
	limited := &io.LimitedReader{R: r}
	decoder := json.NewDecoder(limited)
	for {
		limited.N = maxSizeMessage
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			return
		}
		select {
		case sizes <- container.Size{Width: size.Width, Height: size.Height}:
		case <-ctx.Done():
			return
		}
	}
}

// status is what the last message, on the error channel, has of a metav1.Status.
type status struct {
	Metadata struct{}       `json:"metadata"`
	Status   string         `json:"status"`
	Message  string         `json:"message,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Details  *statusDetails `json:"details,omitempty"`
	Code     int            `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

// outcome is how a process ended, as clients read it.
func outcome(err error) []byte {
	result := status{Status: "Success"}
	var exit exec.CodeExitError
	switch {
	case errors.As(err, &exit):
		result = status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: "command terminated with " + exit.Error(),
			Details: &statusDetails{Causes: []statusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.Code)}}},
		}
	case err != nil:
		result = status{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
	}
	encoded, _ := json.Marshal(result) // of strings and numbers: it cannot fail
	return encoded
}
