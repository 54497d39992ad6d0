package vmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	statsv1 "github.com/pistis-run/pistis/api/stats/v1"
)

// Agent is a guest's agent whose containers run in the test: their programs are those of [program].
type Agent struct {
	// Version that Hello answers; 0 means the right one.
	Version uint32
	// Silent: Hello is never answered.
	Silent bool
	// Intercept, where set, sees every call; an error answers it.
	Intercept func(method string) error
	// Answer, where set, may replace an answer.
	Answer func(method string, answer any) any
	// Raw, where set, serves the control port in place of ttrpc.
	Raw func(net.Conn)

	mu         sync.Mutex
	off        func()
	processes  map[string]*process
	layers     map[string][]*agentv1.DiskAddress
	configured *agentv1.ConfigureSandboxRequest
	deleted    []string
}

type process struct {
	args   []string
	stdio  [3]net.Conn
	kill   chan uint32
	exited chan struct{}
	code   uint32
}

func (a *Agent) setOff(off func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.off, a.processes, a.layers = off, map[string]*process{}, map[string][]*agentv1.DiskAddress{}
}

// Configured is the last ConfigureSandbox; Deleted the keys of all deleted processes.
func (a *Agent) Configured() *agentv1.ConfigureSandboxRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.configured
}

// Deleted lists what was deleted, as container or container/exec.
func (a *Agent) Deleted() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.deleted
}

// Serve answers on one connection.
func (a *Agent) Serve(port uint32, conn net.Conn) {
	switch {
	case port == agentv1.StreamPort:
		go a.stream(conn)
	case a.Raw != nil:
		go a.Raw(conn)
	default:
		server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(a.intercept))
		if err != nil {
			panic(err)
		}
		agentv1.RegisterAgentService(server, service{a})
		go server.Serve(context.Background(), &oneConn{conn: conn, done: make(chan struct{})})
	}
}

func (a *Agent) intercept(ctx context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
	method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	if a.Silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if a.Intercept != nil {
		if err := a.Intercept(method); err != nil {
			return nil, err
		}
	}
	answer, err := m(ctx, u)
	if a.Answer != nil && err == nil {
		answer = a.Answer(method, answer)
	}
	return answer, err
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn net.Conn
	once bool
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if l.once {
		<-l.done
		return nil, net.ErrClosed
	}
	l.once = true
	return l.conn, nil
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

func (a *Agent) stream(conn net.Conn) {
	var header agentv1.StreamHeader
	if err := agentv1.ReadMessage(conn, &header); err != nil {
		conn.Close()
		return
	}
	if d := header.GetDial(); d != nil {
		reply := &agentv1.StreamReply{}
		if d.Address != "localhost:7" {
			reply.Error, reply.Code = "connection refused", uint32(codes.Unavailable)
		}
		agentv1.WriteMessage(conn, reply)
		if reply.Code == 0 {
			io.Copy(conn, conn)
		}
		conn.Close()
		return
	}
	s := header.GetStdio()
	a.mu.Lock()
	p := a.processes[key(s.GetContainer(), s.GetExec())]
	if p != nil {
		p.stdio[s.GetFd()] = conn
	}
	a.mu.Unlock()
	if p == nil {
		agentv1.WriteMessage(conn, &agentv1.StreamReply{Error: "no such process", Code: uint32(codes.NotFound)})
		conn.Close()
		return
	}
	agentv1.WriteMessage(conn, &agentv1.StreamReply{})
}

func key(container, exec string) string {
	if exec == "" {
		return container
	}
	return container + "/" + exec
}

// program runs what a container's args say: echo, cat, lines N, sleep, exit N, spawn (leaves its output open).
func (p *process) program() uint32 {
	out := func(i int) io.Writer {
		if p.stdio[i] == nil {
			return io.Discard
		}
		return p.stdio[i]
	}
	switch p.args[0] {
	case "echo":
		fmt.Fprintln(out(1), strings.Join(p.args[1:], " "))
	case "err":
		fmt.Fprintln(out(2), strings.Join(p.args[1:], " "))
	case "cat":
		if p.stdio[0] != nil {
			io.Copy(out(1), p.stdio[0])
		}
	case "lines":
		n, _ := strconv.Atoi(p.args[1])
		w := bufio.NewWriter(out(1))
		for i := range n {
			fmt.Fprintln(w, i)
		}
		w.Flush()
	case "exit":
		n, _ := strconv.Atoi(p.args[1])
		return uint32(n)
	default:
		return 128 + <-p.kill
	}
	return 0
}

func (p *process) run() {
	done := make(chan uint32, 1)
	go func() { done <- p.program() }()
	select {
	case p.code = <-done:
	case signal := <-p.kill:
		p.code = 128 + signal
	}
	for _, c := range p.stdio {
		if c != nil {
			c.Close()
		}
	}
	close(p.exited)
}

// service is the ttrpc side of an Agent.
type service struct{ *Agent }

// Resize has all processors that are asked for.
func (a service) Resize(_ context.Context, r *agentv1.ResizeRequest) (*agentv1.ResizeResponse, error) {
	return &agentv1.ResizeResponse{Vcpus: r.Vcpus}, nil
}

func (a service) find(container, exec string) (*process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.processes[key(container, exec)]; p != nil {
		return p, nil
	}
	return nil, status.Errorf(codes.NotFound, "process %s", key(container, exec))
}

func (a service) add(k string, args []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.processes[k] = &process{args: args, kill: make(chan uint32, 16), exited: make(chan struct{})}
}

func (a service) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	version := a.Version
	if version == 0 {
		version = agentv1.ProtocolVersion
	}
	return &agentv1.HelloResponse{Version: version, AgentVersion: "fake", Kernel: "Linux version 0.fake", Features: []string{agentv1.FeatureResize, agentv1.FeatureClock}}, nil
}

func (a service) ConfigureSandbox(_ context.Context, r *agentv1.ConfigureSandboxRequest) (*agentv1.ConfigureSandboxResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.configured = r
	return &agentv1.ConfigureSandboxResponse{}, nil
}

func (a service) UpdateNetwork(context.Context, *agentv1.UpdateNetworkRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

// AdjustClock tells the test's own clock.
func (a service) AdjustClock(context.Context, *agentv1.AdjustClockRequest) (*agentv1.AdjustClockResponse, error) {
	return &agentv1.AdjustClockResponse{Clock: timestamppb.Now()}, nil
}

func (a service) SetClock(context.Context, *agentv1.SetClockRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (a service) CreateContainer(_ context.Context, r *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	var spec specs.Spec
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	a.add(r.Id, spec.Process.Args)
	a.mu.Lock()
	a.layers[r.Id] = r.Layers
	a.mu.Unlock()
	return &agentv1.CreateContainerResponse{Pid: 42, User: &agentv1.ResolvedUser{Uid: 7, Gid: 8}}, nil
}

func (a service) Exec(_ context.Context, r *agentv1.ExecRequest) (*agentv1.Empty, error) {
	var process specs.Process
	if err := json.Unmarshal(r.Process, &process); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	a.add(key(r.Container, r.Id), process.Args)
	return &agentv1.Empty{}, nil
}

func (a service) Start(_ context.Context, r *agentv1.StartRequest) (*agentv1.StartResponse, error) {
	p, err := a.find(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	go p.run()
	return &agentv1.StartResponse{Pid: 42}, nil
}

func (a service) Signal(_ context.Context, r *agentv1.SignalRequest) (*agentv1.Empty, error) {
	p, err := a.find(r.Container, r.Exec)
	if err == nil {
		p.kill <- r.Signal
	}
	return &agentv1.Empty{}, err
}

func (a service) Wait(ctx context.Context, r *agentv1.WaitRequest) (*agentv1.WaitResponse, error) {
	p, err := a.find(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		return &agentv1.WaitResponse{Code: p.code, ExitedAt: timestamppb.Now()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a service) Delete(_ context.Context, r *agentv1.DeleteRequest) (*agentv1.DeleteResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := key(r.Container, r.Exec)
	if a.processes[k] == nil {
		return nil, status.Errorf(codes.NotFound, "process %s", k)
	}
	delete(a.processes, k)
	a.deleted = append(a.deleted, k)
	free := a.layers[k]
	delete(a.layers, k)
	return &agentv1.DeleteResponse{Disks: free}, nil
}

func (a service) ResizeTerminal(context.Context, *agentv1.ResizeTerminalRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (a service) Pids(context.Context, *agentv1.PidsRequest) (*agentv1.PidsResponse, error) {
	return &agentv1.PidsResponse{Pids: []*agentv1.Pid{{Pid: 42}}}, nil
}

func (a service) Pause(context.Context, *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (a service) Resume(context.Context, *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (a service) Update(context.Context, *agentv1.UpdateRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (a service) Stats(context.Context, *agentv1.StatsRequest) (*agentv1.StatsResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := &agentv1.StatsResponse{GuestCpu: &statsv1.CPUStats{UsageNs: 1}}
	for k := range a.processes {
		r.Containers = append(r.Containers, &agentv1.ContainerStats{Id: k, Cpu: &statsv1.CPUStats{UsageNs: 5}})
	}
	return r, nil
}

func (a service) RemoveShare(context.Context, *agentv1.RemoveShareRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (a service) Shutdown(context.Context, *agentv1.Empty) (*agentv1.Empty, error) {
	a.mu.Lock()
	off := a.off
	a.mu.Unlock()
	go off()
	return &agentv1.Empty{}, nil
}
