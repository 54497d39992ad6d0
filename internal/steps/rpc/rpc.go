// Package rpc carries reports of steps over ttrpc.
//
// A client asks for them with a key in the metadata of its call. The answer has the report as a field that no message
// declares, which those who know nothing of it pass over, and an error has it among its details. So every call of every
// service can be recorded, also where its messages are somebody else's.
package rpc

import (
	"context"
	"slices"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/pistis-run/pistis/internal/steps"
)

const (
	// key of a call's metadata.
	key = "pistis-steps"
	// field of an answer: so high that nobody else's is the same.
	field = protowire.Number(500_000_017)
	// detail is the type of an error's detail.
	detail = "pistis/steps"
	// unreadable is the step that stands for a report that is none.
	unreadable = "steps that cannot be read"
)

// Serve runs a method, and records it where its caller asks for that. It is for interceptors of servers, which first make an
// error what travels.
func Serve(ctx context.Context, unmarshal ttrpc.Unmarshaler, method ttrpc.Method) (any, error) {
	if _, asked := ttrpc.GetMetadataValue(ctx, key); !asked {
		return method(ctx, unmarshal)
	}
	ctx = steps.Record(ctx)
	answer, err := method(ctx, unmarshal)
	report := steps.Encoded(ctx)
	if err != nil {
		return nil, withDetail(err, report)
	}
	if m, ok := answer.(proto.Message); ok {
		r := m.ProtoReflect()
		r.SetUnknown(append(slices.Clone(r.GetUnknown()), reported(report)...))
	}
	return answer, nil
}

// reported is a report as a field.
func reported(report []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), report)
}

func withDetail(err error, report []byte) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	p := st.Proto()
	p.Details = append(p.Details, &anypb.Any{TypeUrl: detail, Value: report})
	return status.FromProto(p).Err()
}

// Client is an interceptor of clients: calls whose context records have their steps recorded, below the step that the
// context is in.
func Client(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	if !steps.Recording(ctx) {
		return call(ctx, req, resp)
	}
	req.Metadata = append(req.Metadata, &ttrpc.KeyValue{Key: key, Value: "1"})
	if err := call(ctx, req, resp); err != nil {
		return err // there is no answer
	}
	report := inFields(resp.Payload)
	if resp.Status != nil {
		resp.Status.Details = slices.DeleteFunc(resp.Status.Details, func(d *anypb.Any) bool {
			if d.TypeUrl != detail {
				return false
			}
			report = d.Value
			return true
		})
	}
	if report == nil {
		return nil // of somebody who records nothing
	}
	r, err := steps.Decode(report)
	if err != nil {
		_, end := steps.Start(ctx, unreadable)
		end()
		return nil
	}
	steps.Add(ctx, r)
	return nil
}

// inFields returns nil where there is no report.
func inFields(message []byte) (report []byte) {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return nil // whoever decodes the message says so
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return nil
		}
		if number == field && kind == protowire.BytesType {
			report, _ = protowire.ConsumeBytes(message[tag:])
		}
		message = message[tag+size:]
	}
	return report
}
