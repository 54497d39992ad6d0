package shim

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pistis-run/pistis/internal/logfields"
)

const (
	// eventQueue bounds the events that wait for a containerd that does not answer.
	eventQueue = 512
	// eventTimeout bounds one attempt to publish, eventAttempts how many there are.
	eventTimeout  = 5 * time.Second
	eventAttempts = 5
)

// publisher sends containerd's task events, in order, from one goroutine. Without an address it does nothing.
type publisher struct {
	address, namespace string
	log                *slog.Logger
	queue              chan *types.Envelope
	done               chan struct{}

	mu     sync.Mutex
	closed bool
}

func newPublisher(address, namespace string, log *slog.Logger) *publisher {
	p := &publisher{address: strings.TrimPrefix(address, "unix://"), namespace: namespace, log: log, done: make(chan struct{})}
	if address == "" {
		close(p.done)
		return p
	}
	p.queue = make(chan *types.Envelope, eventQueue)
	go p.run()
	return p
}

// close sends what is queued, until ctx ends.
func (p *publisher) close(ctx context.Context) {
	p.mu.Lock()
	if !p.closed && p.queue != nil {
		close(p.queue)
	}
	p.closed = true
	p.mu.Unlock()
	select {
	case <-p.done:
	case <-ctx.Done():
	}
}

// publish queues an event. It never blocks: a containerd that has been away for so long asks for the state itself.
func (p *publisher) publish(topic string, event proto.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue == nil || p.closed {
		return
	}
	data, err := proto.Marshal(event)
	if err != nil {
		p.log.Error("event not encoded", logfields.Topic, topic, logfields.Error, err)
		return
	}
	select {
	case p.queue <- &types.Envelope{
		Timestamp: timestamppb.Now(), Namespace: p.namespace, Topic: topic,
		Event: &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: data},
	}:
	default:
		p.log.Warn("event dropped: too many wait for containerd", logfields.Topic, topic)
	}
}

func (p *publisher) run() {
	defer close(p.done)
	var client *ttrpc.Client
	defer func() {
		if client != nil {
			client.Close()
		}
	}()
	for envelope := range p.queue {
		var err error
		for attempt := range eventAttempts {
			if attempt > 0 {
				time.Sleep(time.Duration(attempt) * time.Second) // containerd may be restarting, which nobody tells
			}
			if client, err = p.send(client, envelope); err == nil {
				break
			}
		}
		if err != nil {
			p.log.Warn("event not published", logfields.Topic, envelope.Topic, logfields.Error, err)
		}
	}
}

// send publishes over client, or a new one; after an error the returned client is nil.
func (p *publisher) send(client *ttrpc.Client, envelope *types.Envelope) (*ttrpc.Client, error) {
	if client == nil {
		conn, err := net.DialTimeout("unix", p.address, eventTimeout)
		if err != nil {
			return nil, err
		}
		client = ttrpc.NewClient(conn)
	}
	ctx, cancel := context.WithTimeout(context.Background(), eventTimeout)
	defer cancel()
	err := client.Call(ctx, "containerd.services.events.ttrpc.v1.Events", "Forward", &eventsapi.ForwardRequest{Envelope: envelope}, &emptypb.Empty{})
	if err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

func (p *publisher) taskCreate(c *container, r *taskapi.CreateTaskRequest) {
	p.publish("/tasks/create", &events.TaskCreate{
		ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Pid: c.pid,
		IO: &events.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
}

func (p *publisher) execAdded(e *process) {
	p.publish("/tasks/exec-added", &events.TaskExecAdded{ContainerID: e.id.Container, ExecID: e.id.Exec})
}

func (p *publisher) taskStart(e *process) {
	_, pid, _ := e.snapshot()
	if e.id.Exec != "" {
		p.publish("/tasks/exec-started", &events.TaskExecStarted{ContainerID: e.id.Container, ExecID: e.id.Exec, Pid: pid})
		return
	}
	p.publish("/tasks/start", &events.TaskStart{ContainerID: e.id.Container, Pid: pid})
}

func (p *publisher) taskExit(e *process) {
	_, pid, exit := e.snapshot()
	if exit.OOMKilled {
		p.publish("/tasks/oom", &events.TaskOOM{ContainerID: e.id.Container})
	}
	id := e.id.Exec
	if id == "" {
		id = e.id.Container
	}
	p.publish("/tasks/exit", &events.TaskExit{
		ContainerID: e.id.Container, ID: id, Pid: pid, ExitStatus: exit.Code, ExitedAt: timestamp(exit.At),
	})
}

func (p *publisher) taskDelete(e *process) {
	_, pid, exit := e.snapshot()
	id := e.id.Exec
	if id == "" {
		id = e.id.Container
	}
	p.publish("/tasks/delete", &events.TaskDelete{
		ContainerID: e.id.Container, ID: id, Pid: pid, ExitStatus: exit.Code, ExitedAt: timestamp(exit.At),
	})
}

func (p *publisher) taskPaused(id string) {
	p.publish("/tasks/paused", &events.TaskPaused{ContainerID: id})
}

func (p *publisher) taskResumed(id string) {
	p.publish("/tasks/resumed", &events.TaskResumed{ContainerID: id})
}
