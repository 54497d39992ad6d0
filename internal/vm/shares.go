package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agentclient"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/share"
	"github.com/pistis-run/pistis/internal/transport"
)

// shares keeps which directories and files of the host the guest has mounted, and who uses them. Each is served once,
// however many containers mount it, and ends when nobody uses it. The server is started for the first.
type shares struct {
	command []string
	agent   *agentclient.Client
	memory  *os.File // what the guest and the servers have in common, or nil
	relays  sync.WaitGroup
	// starting is held by whoever starts the server.
	starting chan struct{}

	mu    sync.Mutex
	host  *share.Host
	over  bool
	byKey map[shareKey]*shared
	byID  map[string]*shared
	next  int
}

// shareKey is what makes one share. A share that is read-only throughout is one of its own: what is writable cannot be
// that again.
type shareKey struct {
	path              string
	follow, recursive bool
	// alone: it is read-only, and what is mounted below it is not. Then the host's mounts say what can be written.
	alone bool
}

// shared is one share. busy is non-nil and open while it is being made, changed or ended; then only whoever made busy
// touches the other fields without the lock.
type shared struct {
	id       string
	key      shareKey
	served   *share.Served
	conn     agentclient.Stream // nil where the server has it
	ended    chan struct{}      // closed when no message can pass any more
	writable bool
	users    int
	busy     chan struct{}
}

func newShares(command []string, agent *agentclient.Client, machine hypervisor.VM) *shares {
	var memory *os.File
	if m, ok := machine.(hypervisor.MemorySharer); ok {
		memory = m.CommonMemory()
	}
	return &shares{command: command, agent: agent, memory: memory, starting: make(chan struct{}, 1), byKey: map[shareKey]*shared{}, byID: map[string]*shared{}}
}

// acquire counts a user of a share, which is mounted in the guest when it returns, and returns its id.
func (s *shares) acquire(ctx context.Context, want share.Share, alone bool) (string, error) {
	key := shareKey{want.Path, want.Follow, want.ReadOnly && want.Recursive, alone}
	for {
		s.mu.Lock()
		e := s.byKey[key]
		switch {
		case s.over:
			s.mu.Unlock()
			return "", fmt.Errorf("share %s: the VM has ended: %w", want.Path, errdefs.ErrUnavailable)
		case e == nil:
			e = s.claimLocked(key)
			s.mu.Unlock()
			return s.attach(ctx, e, want)
		case e.busy == nil && (want.ReadOnly || e.writable):
			e.users++
			s.mu.Unlock()
			return e.id, nil
		case e.busy == nil:
			e.busy = make(chan struct{})
			s.mu.Unlock()
			return s.open(e)
		}
		busy := e.busy
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return "", fmt.Errorf("share %s: %w", want.Path, context.Cause(ctx))
		}
	}
}

// claimLocked makes an entry that its caller attaches.
func (s *shares) claimLocked(key shareKey) *shared {
	s.next++
	e := &shared{id: "s" + strconv.Itoa(s.next), key: key, ended: make(chan struct{}), busy: make(chan struct{})}
	s.byKey[key], s.byID[e.id] = e, e
	return e
}

// settle ends a claim.
func (s *shares) settle(e *shared, change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(e.busy)
	e.busy = nil
}

func (s *shares) dropLocked(e *shared) {
	delete(s.byID, e.id)
	if s.byKey[e.key] == e {
		delete(s.byKey, e.key)
	}
}

// open makes a share writable that was not.
func (s *shares) open(e *shared) (string, error) {
	err := e.served.Writable()
	s.settle(e, func() {
		if err == nil {
			e.writable = true
			e.users++
		}
	})
	if err != nil {
		return "", fmt.Errorf("share %s: make it writable: %w", e.key.path, err)
	}
	return e.id, nil
}

func (s *shares) attach(ctx context.Context, e *shared, want share.Share) (string, error) {
	err := s.mount(ctx, e, want)
	s.settle(e, func() {
		if err != nil {
			s.dropLocked(e)
			return
		}
		e.users, e.writable = 1, !want.ReadOnly
	})
	if err != nil {
		return "", err
	}
	return e.id, nil
}

// mount has the server serve a share and the guest mount it.
func (s *shares) mount(ctx context.Context, e *shared, want share.Share) (err error) {
	host, err := s.server(ctx)
	if err != nil {
		return err
	}
	if !s.agent.Has(agentv1.FeatureLargeShares) {
		want.MaxWrite = agentv1.SmallShareWrite
	}
	want.Watch = want.Watch && s.agent.Has(agentv1.FeatureShareChanges)
	want.Attributes = s.agent.Has(agentv1.FeatureShareAttributes)
	want.Handed, want.Memory = true, s.memory
	if e.served, err = host.Serve(ctx, want); err != nil {
		return err
	}
	conn, err := s.agent.OpenShare(ctx, e.id, e.served.File)
	if err != nil {
		return errors.Join(fmt.Errorf("share %s: %w", want.Path, err), e.served.Close())
	}
	err = transport.Widen(conn, agentv1.ShareRoom)
	taken := false
	if err == nil {
		taken, err = e.served.Hand(conn)
	}
	if taken || err != nil {
		err = errors.Join(err, conn.Close())
	} else {
		e.conn = conn
	}
	if err != nil {
		return errors.Join(fmt.Errorf("share %s: hand the guest's stream over: %w", want.Path, err), e.served.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		e.cut()
		return fmt.Errorf("share %s: the VM has ended: %w", want.Path, errdefs.ErrUnavailable)
	}
	s.relays.Go(func() { s.relay(e) })
	return nil
}

// cut ends a share without the guest's consent. A server that has the guest's stream and hangs does not answer.
func (e *shared) cut() {
	if e.conn != nil {
		e.conn.Close()
		return
	}
	_ = e.served.Stream.CloseWrite()
	_ = e.served.Stream.SetReadDeadline(time.Now().Add(shareEndTimeout))
}

// server returns the pod's server, which it starts where there is none or where it has died.
func (s *shares) server(ctx context.Context) (*share.Host, error) {
	select {
	case s.starting <- struct{}{}:
		defer func() { <-s.starting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	host := s.host
	s.mu.Unlock()
	if host != nil {
		select {
		case <-host.Done():
			_ = host.Close()
		default:
			return host, nil
		}
	}
	host, err := share.Start(ctx, s.command, os.Stderr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, errors.Join(fmt.Errorf("share server: the VM has ended: %w", errdefs.ErrUnavailable), host.Close())
	}
	s.host = host
	return host, nil
}

// relay carries the messages of a share, or leaves that to the server, until either end closes. A share that ends by itself
// is not found any more: whoever wants it next gets a new one.
func (s *shares) relay(e *shared) {
	defer close(e.ended)
	var back sync.WaitGroup
	if e.conn == nil {
		_, _ = e.served.Stream.Read(make([]byte, 1)) // the last message has passed
		back.Go(func() { _, _ = io.Copy(io.Discard, e.served.Stream) })
	} else {
		back.Go(func() {
			carry(e.conn, e.served.Stream)
			e.conn.Close() // the guest's waiters get an error
		})
		carry(e.served.Stream, e.conn)
		_ = e.served.Stream.CloseWrite()
	}
	// The server says when it has let go, unless it hangs in a file system that does not answer.
	_ = e.served.Stream.SetReadDeadline(time.Now().Add(shareEndTimeout))
	back.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey[e.key] == e {
		delete(s.byKey, e.key)
	}
}

// shareEndTimeout bounds the wait for the server's end of a share.
const shareEndTimeout = 5 * time.Second

// carryBuffer holds a large message.
const carryBuffer = 136 << 10

// carry copies until an end. What fails ends the share, whoever was the reason.
func carry(to io.Writer, from net.Conn) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, carryBuffer))
}

// release takes a user from each share and ends those that have none left.
func (s *shares) release(ctx context.Context, ids []string) error {
	var errs []error
	for _, id := range ids {
		if e := s.claimFree(id); e != nil {
			errs = append(errs, s.end(ctx, e))
		}
	}
	return errors.Join(errs...)
}

func (s *shares) claimFree(id string) *shared {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	if e == nil || s.over {
		return nil
	}
	if e.users--; e.users > 0 {
		return nil
	}
	e.busy = make(chan struct{})
	return e
}

// end unmounts a share in the guest, which writes back what it has cached, and then ends it. That the guest has closed its
// stream then is its word only, and a server all of whose workers hang does not see it.
func (s *shares) end(ctx context.Context, e *shared) error {
	err := s.agent.RemoveShare(ctx, e.id)
	if err != nil {
		e.cut()
	}
	bound := time.NewTimer(shareEndTimeout)
	defer bound.Stop()
	select {
	case <-e.ended:
	case <-bound.C:
		e.cut()
		<-e.ended
	}
	err = errors.Join(err, e.served.Close())
	s.settle(e, func() { s.dropLocked(e) })
	return err
}

// close ends everything; the VM has gone.
func (s *shares) close() {
	s.mu.Lock()
	s.over = true
	host := s.host
	for _, e := range s.byID {
		if e.busy == nil {
			e.cut()
			e.served.Stream.Close()
		}
	}
	s.mu.Unlock()
	if host != nil {
		// What does not end hangs in the kernel; it is in the pod's control group, whose removal reports it.
		_ = host.Close()
	}
	s.relays.Wait()
}

// AttachShare has the guest mount a directory or a file of the host, once for all containers, and counts a user. It
// returns the share's id for ReleaseShares and where it is in the guest. A share that is alone is used by nobody who
// wants to write.
func (v *VM) AttachShare(ctx context.Context, want share.Share, alone bool) (id, path string, err error) {
	if id, err = v.shares.acquire(ctx, want, alone); err != nil {
		return "", "", err
	}
	return id, agentv1.SharePath(id), nil
}

// ReleaseShares ends the use of shares.
func (v *VM) ReleaseShares(ctx context.Context, ids []string) error {
	return v.shares.release(ctx, ids)
}
