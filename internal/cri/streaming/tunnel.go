package streaming

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// tunnelProtocol is a WebSocket whose binary messages are the bytes of a SPDY connection (KEP-4006).
const tunnelProtocol = spdy.HeaderSpdy31 + "+" + portforward.ProtocolV1Name

// serveTunnel takes a WebSocket and has serve upgrade what goes through it to SPDY, as if it were the connection itself.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			if !slices.Contains(config.Protocol, tunnelProtocol) {
				return errors.New("no tunnel was asked for") // the caller looked
			}
			config.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			serve(&tunnel{ws: ws, header: http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// tunnel is the answer to a request that was never sent: its status and header go nowhere, as the client of a tunnel
// knows them from the WebSocket's handshake.
type tunnel struct {
	ws     *websocket.Conn
	header http.Header
}

func (t *tunnel) Header() http.Header         { return t.header }
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }
func (t *tunnel) WriteHeader(int)             {}

func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.ws, bufio.NewReadWriter(bufio.NewReader(t.ws), bufio.NewWriter(t.ws)), nil
}

// offers says whether a WebSocket's client names one of the subprotocols; one that names none offers the empty one.
func offers(r *http.Request, protocols ...string) bool {
	offered := strings.Split(strings.Join(r.Header.Values(wsstream.WebSocketProtocolHeader), ","), ",")
	return slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(protocols, strings.TrimSpace(p)) })
}
