package monitor_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/task"
)

// TestDaemonDies kills the daemon, and 100 MB of log are written while there is none.
func TestDaemonDies(t *testing.T) {
	const lineCount = 1_000_000
	for name, r := range runtimes(t) {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, r)
			gate := filepath.Join(p.work, "gate")
			if err := unix.Mkfifo(gate, 0o600); err != nil {
				t.Fatal(err)
			}
			req := p.prepare("c1", []string{"/prog", "flood", fmt.Sprint(lineCount), "/gate"}, func(s *specs.Spec, _ *monitor.CreateRequest) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/gate", Type: "bind", Source: gate, Options: []string{"bind"}})
			})
			p.withDaemon(order{p.config, req})
			// Only now may it begin.
			if err := os.WriteFile(gate, nil, 0); err != nil {
				t.Fatal(err)
			}
			p.afterDaemon(req, lineCount)
		})
	}
}

// withDaemon lets a daemon carry out an order and kills it.
func (p *pod) withDaemon(o order) {
	p.t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), daemonVariable+"="+string(text))
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "started\n" {
		p.t.Errorf("the daemon said %q, %v", line, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
}

// afterDaemon asks for the exit and compares the log with what was written.
func (p *pod) afterDaemon(req monitor.CreateRequest, lineCount int) {
	t := p.t
	t.Helper()
	var err error
	if p.Client, err = monitor.Connect(t.Context(), p.config.Dir); err != nil {
		t.Fatal(err)
	}
	if exit := p.end("c1"); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	f, err := os.Open(req.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scanner, n := bufio.NewScanner(f), 0
	content := strings.Repeat("x", 88)
	for ; scanner.Scan(); n++ {
		_, record, _ := strings.Cut(scanner.Text(), " ")
		if want := fmt.Sprintf("stdout F %010d %s", n, content); record != want {
			t.Fatalf("record %d = %q, want %q", n, record, want)
		}
	}
	if n != lineCount || scanner.Err() != nil {
		t.Errorf("%d records, %v", n, scanner.Err())
	}
}

// TestMonitorDies: its containers live on until they are cleaned up, which needs no monitor.
func TestMonitorDies(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.create("c1", []string{"/prog", "pause"})
		pid, err := p.Start(t.Context(), c1)
		if err != nil {
			t.Fatal(err)
		}
		waited := make(chan error, 1)
		go func() {
			_, err := p.Wait(context.Background(), c1)
			waited <- err
		}()
		if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		reason, err := p.WaitEnd(t.Context())
		if err != nil || !strings.Contains(reason, "ended unexpectedly") {
			t.Errorf("end = %q, %v", reason, err)
		}
		if err := <-waited; !errdefs.IsUnavailable(err) {
			t.Errorf("wait = %v", err)
		}
		if err := p.Signal(t.Context(), c1, 9, true); !errdefs.IsUnavailable(err) {
			t.Errorf("signal = %v", err)
		}
		if _, err := monitor.Connect(t.Context(), p.config.Dir); !errdefs.IsUnavailable(err) {
			t.Errorf("connect = %v", err)
		}
		if err := unix.Kill(int(pid), 0); err != nil {
			t.Errorf("the container has ended: %v", err)
		}
		if err := monitor.Cleanup(t.Context(), p.config.Dir); err != nil {
			t.Fatal(err)
		}
		checkDead(t, int(pid))
	})
}

// checkDead wants a process gone, or a zombie that its parent has not yet taken notice of.
func checkDead(t *testing.T, pid int) {
	t.Helper()
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("process %d lives: %s", pid, state)
	}
}

func TestShutdown(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "pause"})
		p.create("c2", []string{"/prog", "pause"})
		if err := p.Shutdown(t.Context(), false); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("shutdown with containers = %v", err)
		}
		if err := p.Shutdown(t.Context(), true); err != nil {
			t.Error(err)
		}
		if err := p.Shutdown(t.Context(), true); err != nil {
			t.Errorf("second shutdown = %v", err)
		}
		if left, _ := os.ReadDir(filepath.Join(p.work, "state")); len(left) > 0 {
			t.Errorf("left in the runtime's state: %v", left)
		}
	})
}

// TestLaunchFails wants every failure told, and nothing left.
func TestLaunchFails(t *testing.T) {
	for name, r := range runtimes(t) {
		t.Run(name, func(t *testing.T) {
			good := launch(t, r).config
			for _, tt := range []struct {
				name   string
				change func(*monitor.Config)
				class  func(error) bool
			}{
				{"no binary", func(c *monitor.Config) { c.Binary = "/no/such/monitor" }, errdefs.IsNotFound},
				{"not a monitor", func(c *monitor.Config) { c.Binary = "/bin/true" }, errdefs.IsUnavailable},
				{"no runtime", func(c *monitor.Config) { c.Runtime = "/no/such/runtime" }, errdefs.IsNotFound},
				{"cgroup outside", func(c *monitor.Config) { c.Cgroup = "../x" }, errdefs.IsInvalidArgument},
			} {
				cfg := good
				cfg.Dir = filepath.Join(filepath.Dir(good.Dir), "other")
				cfg.Cgroup += "2"
				tt.change(&cfg)
				c, err := monitor.Launch(t.Context(), cfg)
				if !tt.class(err) {
					t.Errorf("%s: %v", tt.name, err)
				}
				if c != nil {
					c.Close()
				}
				if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: the bundle is left", tt.name)
				}
			}
			if _, err := monitor.Launch(t.Context(), good); !errdefs.IsAlreadyExists(err) {
				t.Errorf("second launch = %v", err)
			}
		})
	}
}

// TestBounds wants bad requests refused by class.
func TestBounds(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		for _, id := range []string{"", ".", "..", "a/b", "-x", strings.Repeat("x", 129)} {
			if err := p.Create(t.Context(), monitor.CreateRequest{ID: id, Bundle: "/"}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("create %q = %v", id, err)
			}
		}
		if err := p.Create(t.Context(), monitor.CreateRequest{ID: "x", Bundle: "relative"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("create = %v", err)
		}
		p.create("c1", []string{"/prog"})
		if err := p.Create(t.Context(), monitor.CreateRequest{ID: "c1", Bundle: "/"}); !errdefs.IsAlreadyExists(err) {
			t.Errorf("second create = %v", err)
		}
		for _, r := range []task.ExecRequest{
			{ID: task.ID{Container: "c1"}, Process: []byte(`{"user":{}}`)},
			{ID: task.ID{Container: "c1", Exec: "../x"}, Process: []byte(`{"user":{}}`)},
			{ID: task.ID{Container: "c1", Exec: "e"}, Process: []byte(`{}`)},
			{ID: task.ID{Container: "c1", Exec: "e"}, Process: []byte(`{`)},
		} {
			if err := p.Exec(t.Context(), r); !errdefs.IsInvalidArgument(err) {
				t.Errorf("exec of %s as %q = %v", r.Process, r.ID.Exec, err)
			}
		}
		huge := monitor.CreateRequest{ID: "c2", Bundle: "/" + strings.Repeat("x", 5<<20)}
		if err := p.Create(t.Context(), huge); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a message that is too long = %v", err)
		}
	})
}

// TestStrangeRequests says things to the socket that no client of ours says.
func TestStrangeRequests(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "pause"})
		socket := filepath.Join(p.config.Dir, "shim.sock")
		for request, want := range map[string]string{
			"\xff\xff\xff\xff": "InvalidArgument", "GET / HTTP/1.0\r\n\r\n": "InvalidArgument", "\x00\x00\x00\x02[]": "InvalidArgument",
			message(`{"version":2,"verb":"hello"}`): "NotImplemented", message(`{"version":1,"verb":"dance","id":{"Container":"c1"}}`): "NotImplemented",
			message(`{"version":1,"verb":"wait","id":{"Container":"c1","Exec":"e"}}`):                        "InvalidArgument",
			message(`{"version":1,"verb":"attach","id":{"Container":"c1","Exec":"e"}}`):                      "InvalidArgument",
			message(`{"version":1,"verb":"exec","id":{"Container":"c1","Exec":"../e"},"args":{}}`):           "InvalidArgument",
			message(`{"version":1,"verb":"exec","id":{"Container":"c1","Exec":"e"},"args":{"stdin":true}}`):  "InvalidArgument",
			message(`{"version":1,"verb":"signal","id":{"Container":"c1"},"args":{"signal":-1}}`):            "InvalidArgument",
			message(`{"version":1,"verb":"resize","id":{"Container":"c1"},"args":{"width":70000}}`):          "InvalidArgument",
			message(`{"version":1,"verb":"update","id":{"Container":"c1"},"args":{"memory":{"limit":"x"}}}`): "InvalidArgument",
		} {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, request)
			var reply monitor.Reply
			_, err = monitor.Conn{UnixConn: conn.(*net.UnixConn)}.Receive(&reply)
			if err != nil || reply.Error == nil || reply.Error.Class != want {
				t.Errorf("%q: %+v, %v, want %s", request, reply.Error, err, want)
			}
			conn.Close()
		}
		p.kill("c1")
		p.end("c1")
	})
}

func message(body string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
}
