package rpc

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/pistis-run/pistis/internal/steps"
)

// serve serves one service, with the interceptor given, and returns a client of it.
func serve(t *testing.T, interceptor ttrpc.UnaryServerInterceptor, method ttrpc.Method) *ttrpc.Client {
	t.Helper()
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(interceptor))
	if err != nil {
		t.Fatal(err)
	}
	server.Register("test", map[string]ttrpc.Method{"Do": method})
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), listener) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(Client))
	t.Cleanup(func() {
		client.Close()
		server.Close()
		<-served
	})
	return client
}

func records(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
	return Serve(ctx, u, m)
}

func knowsNothing(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
	return m(ctx, u)
}

func do(refuse bool) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		if err := unmarshal(&wrapperspb.StringValue{}); err != nil {
			return nil, err
		}
		_, end := steps.Start(ctx, "part")
		if refuse {
			return nil, status.Error(codes.NotFound, "not here")
		}
		end()
		return wrapperspb.String("done"), nil
	}
}

func names(ctx context.Context) (names []string) {
	for _, s := range steps.Recorded(ctx).Steps {
		names = append(names, s.Name)
	}
	return names
}

func TestSteps(t *testing.T) {
	for _, tt := range []struct {
		name         string
		record, fail bool
		server       ttrpc.UnaryServerInterceptor
		want         int
	}{
		{"recorded", true, false, records, 1},
		{"recorded, and it fails", true, true, records, 1},
		{"not asked for", false, false, records, 0},
		{"not asked for, and it fails", false, true, records, 0},
		{"of one that records nothing", true, false, knowsNothing, 0},
		{"of one that records nothing, and it fails", true, true, knowsNothing, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := serve(t, tt.server, do(tt.fail))
			ctx := t.Context()
			if tt.record {
				ctx = steps.Record(ctx)
			}
			var answer wrapperspb.StringValue
			err := client.Call(ctx, "test", "Do", wrapperspb.String("x"), &answer)
			if st, _ := status.FromError(err); tt.fail && (st.Code() != codes.NotFound || st.Message() != "not here" || len(st.Proto().Details) > 0) {
				t.Errorf("got error %v", err)
			}
			if !tt.fail && (err != nil || answer.Value != "done") {
				t.Errorf("got %q and %v", answer.Value, err)
			}
			if got := names(ctx); len(got) != tt.want || tt.want > 0 && got[0] != "part" {
				t.Errorf("got steps %q", got)
			}
		})
	}
}

// TestUnreadable: an answer counts, whatever its report is.
func TestUnreadable(t *testing.T) {
	client := serve(t, func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
		answer, err := m(ctx, u)
		if err == nil {
			answer.(proto.Message).ProtoReflect().SetUnknown(reported([]byte("no report")))
		}
		return answer, err
	}, do(false))
	ctx := steps.Record(t.Context())
	var answer wrapperspb.StringValue
	if err := client.Call(ctx, "test", "Do", wrapperspb.String("x"), &answer); err != nil || answer.Value != "done" {
		t.Errorf("got %q and %v", answer.Value, err)
	}
	if got := names(ctx); len(got) != 1 || got[0] != unreadable {
		t.Errorf("got steps %q", got)
	}
}

func TestLostConnection(t *testing.T) {
	client := serve(t, records, func(context.Context, func(any) error) (any, error) { return nil, errors.ErrUnsupported })
	client.Close()
	if err := client.Call(steps.Record(t.Context()), "test", "Do", wrapperspb.String("x"), &wrapperspb.StringValue{}); err == nil {
		t.Error("a call without a connection succeeded")
	}
}

func FuzzInFields(f *testing.F) {
	f.Add(reported([]byte("{}")))
	f.Add([]byte{0x0a, 0x80})
	f.Fuzz(func(t *testing.T, message []byte) {
		if report := inFields(message); len(report) > len(message) {
			t.Error("more than there is")
		}
	})
}
