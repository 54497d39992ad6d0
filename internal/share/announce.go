package share

import (
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// announce tells the guest what changes in a watched share, until the session ends. Each change waits until the guest
// has repeated the one before.
func (s *session) announce(m *mirror) {
	for {
		changes, err := m.plan()
		for _, c := range changes {
			if err == nil {
				err = s.tell(c)
			}
		}
		if err != nil {
			s.end(err)
			return
		}
		m.told()
		select {
		case <-m.changed:
		case <-s.ended:
			return
		}
	}
}

// tell sends one change and waits for the answer.
func (s *session) tell(c *agentv1.ShareChange) error {
	body, err := proto.Marshal(c)
	if err != nil {
		return err
	}
	frame := make([]byte, replySize, replySize+len(body))
	binary.NativeEndian.PutUint32(frame, uint32(replySize+len(body)))
	binary.NativeEndian.PutUint32(frame[4:], agentv1.ShareChanged)
	if err := s.send(append(frame, body...)); err != nil {
		return err
	}
	select {
	case <-s.repeated:
	case <-s.ended:
	}
	return nil
}
