// Package collector is an OpenTelemetry collector for tests: it keeps the spans that it is sent.
package collector

import (
	"context"
	"encoding/hex"
	"net"
	"slices"
	"sync"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Collector takes OTLP over gRPC.
type Collector struct {
	collectorv1.UnimplementedTraceServiceServer
	// URL is its endpoint.
	URL string

	server *grpc.Server
	served sync.WaitGroup
	mu     sync.Mutex
	spans  []*tracev1.Span
}

// Start listens on loopback. The caller ends it with Close.
func Start() (*Collector, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Collector{URL: "http://" + listener.Addr().String(), server: grpc.NewServer()}
	collectorv1.RegisterTraceServiceServer(c.server, c)
	c.served.Go(func() { _ = c.server.Serve(listener) }) // it ends with Close
	return c, nil
}

// Close ends it.
func (c *Collector) Close() {
	c.server.Stop()
	c.served.Wait()
}

// Export implements the collector's service.
func (c *Collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, s := range r.ScopeSpans {
			c.spans = append(c.spans, s.Spans...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// Paths are the names of all spans, each after those of its ancestors, as "a/b/c", sorted and without repetition. A span
// whose parent was not sent begins a path.
func (c *Collector) Paths() []string { return c.paths(func(*tracev1.Span) bool { return true }) }

// In are the paths in one trace, whose id is in hexadecimal digits.
func (c *Collector) In(trace string) []string {
	return c.paths(func(s *tracev1.Span) bool { return hex.EncodeToString(s.TraceId) == trace })
}

// Outside are the paths of the spans that are not within the time of their parent.
func (c *Collector) Outside() []string {
	byID := map[string]*tracev1.Span{}
	c.paths(func(s *tracev1.Span) bool { byID[string(s.SpanId)] = s; return false })
	return c.paths(func(s *tracev1.Span) bool {
		parent := byID[string(s.ParentSpanId)]
		return parent != nil && (s.StartTimeUnixNano < parent.StartTimeUnixNano || s.EndTimeUnixNano > parent.EndTimeUnixNano)
	})
}

func (c *Collector) paths(wanted func(*tracev1.Span) bool) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	byID := map[string]*tracev1.Span{}
	for _, s := range c.spans {
		byID[hex.EncodeToString(s.SpanId)] = s
	}
	var paths []string
	for _, s := range c.spans {
		if !wanted(s) {
			continue
		}
		path := s.Name
		for parent := byID[hex.EncodeToString(s.ParentSpanId)]; parent != nil; parent = byID[hex.EncodeToString(parent.ParentSpanId)] {
			path = parent.Name + "/" + path
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}
