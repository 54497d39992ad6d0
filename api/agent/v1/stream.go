package agentv1

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

const (
	// ProtocolVersion is the version of the contract that this code speaks.
	ProtocolVersion = 1

	// ControlPort is the guest port that serves ttrpc; StreamPort the one that takes byte streams.
	// On AF_VSOCK they are vsock ports, on virtio-serial the first four bytes of a multiplexed stream.
	ControlPort = 1024
	StreamPort  = 1025

	// MaxHeader bounds a framed StreamHeader or StreamReply, in bytes.
	MaxHeader = 64 << 10

	// MaxShareWrite bounds the data of one FUSE message of a share, in bytes; MaxShareFrame a whole message. Agents without
	// FeatureLargeShares take SmallShareWrite.
	MaxShareWrite   = 512 << 10
	SmallShareWrite = 128 << 10
	MaxShareFrame   = MaxShareWrite + 4<<10
	// ShareRoom is how much of a share's stream may wait for its reader on either side: two large messages.
	ShareRoom = 2 * MaxShareFrame

	// ShareInMemory is set in the length of a FUSE message of a share whose data is in the memory that host and guest have in
	// common, where the machine has such. The guest says where: a request to write or to read ends with an offset and a length, 32
	// bits each, instead of the data, and the answer to the latter with how much was read.
	ShareInMemory = 1 << 31
	// SharePlace is the size of what such a request ends with, ShareCount of what such an answer ends with.
	SharePlace, ShareCount = 8, 4

	// ShareChanged is what the error of a FUSE message says that carries a ShareChange, and ShareRepeater the pid of
	// requests that the agent makes to repeat it. Neither is a number that a kernel uses.
	ShareChanged  = 0x70697374
	ShareRepeater = ^uint32(0)

	// ShareAttributes is what the error of a FUSE message says, whose unique is 0, that carries attributes which a request has
	// changed: the request's unique, the directory's node, and what GETATTR answers for it. It is sent right before the answer
	// to that request, once for each directory whose entries it has changed.
	ShareAttributes = 0x70697375
	// ShareAttributesSize is all of such a message: a header of 16 bytes, two numbers of 8 bytes, and FUSE's attr_out.
	ShareAttributesSize = 16 + 2*8 + 104

	// FeatureShares in HelloResponse.Features: the agent knows ShareStream and RemoveShare.
	FeatureShares = "shares"
	// FeatureShareChanges in HelloResponse.Features: the agent knows ShareChange.
	FeatureShareChanges = "share-changes"
	// FeatureShareAttributes in HelloResponse.Features: the agent knows ShareAttributes.
	FeatureShareAttributes = "share-attributes"
	// FeaturePIDNamespaces: it knows CreateContainerRequest.pid_namespace.
	FeaturePIDNamespaces = "pid-namespaces"
	// FeatureLargeShares: messages of shares may have MaxShareWrite bytes of data.
	FeatureLargeShares = "large-shares"
	// FeatureModules: it knows ConfigureSandboxRequest.modules.
	FeatureModules = "modules"
	// FeatureMemoryVolumes: it knows CreateContainerRequest.memory.
	FeatureMemoryVolumes = "memory-volumes"
	// FeatureBlockDevices: it knows CreateContainerRequest.devices.
	FeatureBlockDevices = "block-devices"
	// FeatureClock: it knows AdjustClock.
	FeatureClock = "clock"
	// FeatureShareParts: it knows CreateContainerRequest.share_parts.
	FeatureShareParts = "share-parts"
	// FeatureDirectShares: it takes ShareStream on the port for streams that have connections of their own.
	FeatureDirectShares = "direct-shares"
	// FeatureResize: it knows Resize.
	FeatureResize = "resize"

	shareDir = "/run/pistis/shares/"
)

// SharePath is where the guest mounts a share: what the spec of a container names as the source of a bind mount.
func SharePath(id string) string { return shareDir + id }

// WriteMessage writes m with a big-endian 32-bit length before it.
func WriteMessage(w io.Writer, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > MaxHeader {
		return fmt.Errorf("stream message of %d bytes exceeds %d", len(body), MaxHeader)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// ReadMessage reads what WriteMessage wrote and never more than that: the bytes after it belong to the
// stream. A length over MaxHeader is an error and nothing of the body is read.
func ReadMessage(r io.Reader, m proto.Message) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxHeader {
		return fmt.Errorf("stream message of %d bytes exceeds %d", n, MaxHeader)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return proto.Unmarshal(body, m)
}
