package streaming

import (
	"context"
	"net/http"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/task"
)

// The kinds of streams, as the first part of a URL's path.
const (
	execKind    = "exec"
	attachKind  = "attach"
	forwardKind = "portforward"
)

// creationTimeout is how long a client may take to open the streams of a SPDY connection.
const creationTimeout = remotecommand.DefaultStreamCreationTimeout

// Subprotocols of WebSockets. The empty one stands for a client that names none.
var (
	processProtocols = []string{
		remotecommand.StreamProtocolV5Name, remotecommand.StreamProtocolV4Name, "v4." + wsstream.Base64ChannelWebSocketProtocol,
		wsstream.ChannelWebSocketProtocol, wsstream.Base64ChannelWebSocketProtocol, "",
	}
	forwardProtocols = []string{tunnelProtocol, remotecommand.StreamProtocolV4Name, "v4." + wsstream.Base64ChannelWebSocketProtocol, ""}
)

// GetExec promises to run a command; req was validated.
func (s *Server) GetExec(req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	o := remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	path, err := s.tickets.issue(execKind, func(w http.ResponseWriter, r *http.Request) {
		if !versionFive(r) {
			remotecommand.ServeExec(w, r, s.engine, "", "", req.ContainerId, req.Cmd, &o, s.idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
			return
		}
		s.serveChannels(w, r, o, func(ctx context.Context, stdio task.Stdio, resize <-chan container.Size) error {
			return s.engine.exec(ctx, req.ContainerId, req.Cmd, req.Tty, stdio, resize)
		})
	})
	if err != nil {
		return nil, err
	}
	return &runtime.ExecResponse{Url: s.url(path)}, nil
}

// GetAttach promises to join a container's own process; req was validated.
func (s *Server) GetAttach(req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	o := remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	path, err := s.tickets.issue(attachKind, func(w http.ResponseWriter, r *http.Request) {
		if !versionFive(r) {
			remotecommand.ServeAttach(w, r, s.engine, "", "", req.ContainerId, &o, s.idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
			return
		}
		s.serveChannels(w, r, o, func(ctx context.Context, stdio task.Stdio, resize <-chan container.Size) error {
			return s.engine.processes.Attach(ctx, req.ContainerId, req.Tty, stdio, resize)
		})
	})
	if err != nil {
		return nil, err
	}
	return &runtime.AttachResponse{Url: s.url(path)}, nil
}

// GetPortForward promises to carry connections to ports of a sandbox's localhost; req was validated.
func (s *Server) GetPortForward(req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, s.engine, req.PodSandboxId, "", &portforward.V4Options{Ports: req.Port},
			s.idleTimeout, creationTimeout, portforward.SupportedProtocols)
	}
	path, err := s.tickets.issue(forwardKind, func(w http.ResponseWriter, r *http.Request) {
		if offers(r, tunnelProtocol) {
			serveTunnel(w, r, serve)
			return
		}
		serve(w, r)
	})
	if err != nil {
		return nil, err
	}
	return &runtime.PortForwardResponse{Url: s.url(path)}, nil
}

// routes serve the kinds of streams under their URLs.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{token}", s.redeem(execKind, processProtocols, &s.processes))
	mux.HandleFunc("/attach/{token}", s.redeem(attachKind, processProtocols, &s.processes))
	mux.HandleFunc("/portforward/{token}", s.redeem(forwardKind, forwardProtocols, &s.forwards))
	return mux
}

// redeem serves one stream. A client that asks for protocols that we do not speak keeps its ticket: it may fall back to
// another.
func (s *Server) redeem(kind string, protocols []string, running *gate) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		leave, ok := running.enter()
		if !ok {
			http.Error(w, "the daemon is going down", http.StatusServiceUnavailable)
			return
		}
		defer leave()
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodPost:
			http.Error(w, "streams are opened with GET or POST", http.StatusMethodNotAllowed)
			return
		case wsstream.IsWebSocketRequest(r) && !offers(r, protocols...):
			http.Error(w, "none of the WebSocket subprotocols is spoken here", http.StatusForbidden)
			return
		}
		serve, ok := s.tickets.claim(kind, r.PathValue("token"))
		if !ok {
			http.NotFound(w, r)
			return
		}
		serve(w, r)
	}
}

// versionFive: the client offers a WebSocket on which it can close stdin, and gets it.
func versionFive(r *http.Request) bool {
	return wsstream.IsWebSocketRequest(r) && offers(r, remotecommand.StreamProtocolV5Name)
}
