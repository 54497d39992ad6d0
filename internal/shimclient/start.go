package shimclient

import (
	"bytes"
	"encoding/json"
	"fmt"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// namespace is what shims are told that their containerd namespace is, by a header in each call.
	namespace       = "pistis"
	namespaceHeader = "containerd-namespace-ttrpc"
	// maxAnswer bounds what the start command may print.
	maxAnswer = 64 << 10
	// maxVersion is that of the newest task service that there is.
	maxVersion = 3
)

// Bootstrap is what the binary of a shim is told of a container, before there is a shim to call.
type Bootstrap struct {
	ID, Bundle string
	// Events is the path of a socket where the shim may tell what happens. It names the daemon too. Empty: none.
	Events string
	// SocketDir is where the shim's socket shall be; empty leaves it to the shim.
	SocketDir string
	// Options are the shim's own; nil: none.
	Options *anypb.Any
	Debug   bool
}

// Call is how a binary is called in the bundle's directory.
type Call struct {
	Args, Env []string
	Input     []byte
}

// Start asks for a shim, or for the one that the container's pod has already.
func (b Bootstrap) Start() (Call, error) {
	params := &bootapi.BootstrapParams{InstanceID: b.ID, Namespace: namespace, ContainerdGrpcAddress: b.Events, ContainerdTtrpcAddress: b.Events}
	if b.SocketDir != "" {
		params.SocketDir = &b.SocketDir
	}
	if b.Debug {
		params.LogLevel = bootapi.LogLevel_LOG_LEVEL_DEBUG
	} else {
		params.LogLevel = bootapi.LogLevel_LOG_LEVEL_INFO
	}
	if b.Options != nil {
		if err := params.AddExtension(b.Options); err != nil {
			return Call{}, fmt.Errorf("options of the shim: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	input, err := proto.Marshal(params)
	return Call{Args: b.args("start"), Env: b.env(), Input: input}, err
}

// Delete removes what a shim that has gone has left of the container.
func (b Bootstrap) Delete() Call { return Call{Args: b.args("delete"), Env: b.env()} }

func (b Bootstrap) args(action string) []string {
	args := []string{"-namespace", namespace, "-id", b.ID, "-bundle", b.Bundle}
	if b.Events != "" {
		args = append(args, "-address", b.Events)
	}
	if b.Debug {
		args = append(args, "-debug")
	}
	return append(args, action)
}

// env is what shims took before there were parameters on their input.
func (b Bootstrap) env() []string {
	return []string{"TTRPC_ADDRESS=" + b.Events, "GRPC_ADDRESS=" + b.Events, "NAMESPACE=" + namespace, "MAX_SHIM_VERSION=2"}
}

// Answer is where a shim is reached.
type Answer struct {
	// Version of its task service.
	Version           int
	Address, Protocol string
}

// ParseAnswer reads what the start command has printed: protobuf, JSON before that, an address alone before that.
func ParseAnswer(out []byte) (Answer, error) {
	var answer Answer
	var message bootapi.BootstrapResult
	if len(out) == 0 || len(out) > maxAnswer {
		return answer, fmt.Errorf("the start command answered with %d bytes: %w", len(out), errdefs.ErrInternal)
	}
	switch text := bytes.TrimSpace(out); {
	case proto.Unmarshal(out, &message) == nil:
		answer = Answer{Version: int(message.Version), Address: message.Address, Protocol: message.Protocol}
	case json.Unmarshal(text, &answer) == nil:
	case bytes.HasPrefix(text, []byte("unix://")):
		answer = Answer{Version: 2, Address: string(text), Protocol: "ttrpc"}
	}
	if answer.Address == "" {
		return answer, fmt.Errorf("the start command answered %.100q: %w", out, errdefs.ErrInternal)
	}
	if answer.Version < 2 || answer.Version > maxVersion {
		return answer, fmt.Errorf("the shim speaks version %d of the task service, and not 2 to %d: %w", answer.Version, maxVersion, errdefs.ErrNotImplemented)
	}
	return answer, nil
}
