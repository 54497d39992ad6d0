package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// monitor is QEMU's end: answer is called with each command and returns what to send.
func monitor(t *testing.T, greeting string, answer func(name string, id uint64) string) *net.UnixConn {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer conns[1].Close()
		io.WriteString(conns[1], greeting)
		for dec := json.NewDecoder(conns[1]); ; {
			var r struct {
				Execute string
				ID      uint64
			}
			if dec.Decode(&r) != nil {
				return
			}
			if r.Execute == "qmp_capabilities" {
				fmt.Fprintf(conns[1], "{\"return\": {}, \"id\": %d}\r\n", r.ID)
				continue
			}
			reply := answer(r.Execute, r.ID)
			if reply == "" {
				return
			}
			io.WriteString(conns[1], reply)
		}
	})
	t.Cleanup(func() {
		conns[0].Close()
		conns[1].Close()
		wg.Wait()
	})
	return conns[0]
}

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

func TestExecute(t *testing.T) {
	conn := monitor(t, hello, func(name string, id uint64) string {
		switch name {
		case "query-status":
			return fmt.Sprintf("{\"timestamp\": {}, \"event\": \"RESUME\"}\r\n{\"return\": {\"status\": \"running\"}, \"id\": %d}\r\n", id)
		case "blockdev-del":
			return fmt.Sprintf("{\"id\": %d, \"error\": {\"class\": \"GenericError\", \"desc\": \"node is in use\"}}\r\n", id)
		}
		return ""
	})
	var events []string
	c, err := New(t.Context(), conn, func(e Event) { events = append(events, e.Name) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resumed, stop := c.Watch(func(e Event) bool { return e.Name == "RESUME" })
	defer stop()
	var status struct{ Status string }
	if err := c.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Fatalf("status %q, %v", status.Status, err)
	}
	if e := <-resumed; e.Name != "RESUME" || len(events) != 1 {
		t.Errorf("event %v, seen %v", e, events)
	}
	var refusal *Error
	if err := c.Execute(t.Context(), "blockdev-del", map[string]string{"node-name": "x"}, nil); !errors.As(err, &refusal) || refusal.Desc != "node is in use" {
		t.Errorf("error %v", err)
	}
	if err := c.Execute(t.Context(), "quit", nil, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("the monitor closed the connection: %v", err)
	}
	<-c.Done()
}

// TestSentAndCanceled: a command that is given up when it was sent does not cut off the next.
func TestSentAndCanceled(t *testing.T) {
	for range 300 {
		conn := monitor(t, hello, func(_ string, id uint64) string { return fmt.Sprintf("{\"return\": {}, \"id\": %d}\r\n", id) })
		c, err := New(t.Context(), conn, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if err := c.Execute(ctx, "x", nil, nil); !errdefs.IsUnavailable(err) { // else it was cut off itself
			if err := c.Execute(t.Context(), "x", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
	}
}

func TestContext(t *testing.T) {
	silent, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(silent[1])
	f := os.NewFile(uintptr(silent[0]), "socket")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, conn.(*net.UnixConn), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a monitor without greeting: %v", err)
	}

	asked := make(chan struct{})
	c, err := New(t.Context(), monitor(t, hello, func(string, uint64) string {
		close(asked)
		return "\r\n"
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if err := c.Execute(ctx, "stop", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a command without answer: %v", err)
	}
}

func TestGreeting(t *testing.T) {
	for _, greeting := range []string{"{\"return\": {}, \"id\": 1}\r\n", "SSH-2.0\r\n", strings.Repeat(" ", maxMessage+1) + "\n"} {
		if _, err := New(t.Context(), monitor(t, greeting, func(string, uint64) string { return "" }), nil); err == nil {
			t.Errorf("greeting %.20q was accepted", greeting)
		}
	}
}

// TestFiles: the descriptors arrive with the command.
func TestFiles(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "socket")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fds[1])
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		syscall.Write(fds[1], []byte(hello))
		buf, oob := make([]byte, 4096), make([]byte, 4096)
		n, _, _, _, _ := syscall.Recvmsg(fds[1], buf, oob, 0)
		fmt.Fprint(rawFD(fds[1]), "{\"return\": {}, \"id\": 1}\r\n")
		n, oobn, _, _, err := syscall.Recvmsg(fds[1], buf, oob, 0)
		if err != nil || !bytes.Contains(buf[:n], []byte("add-fd")) {
			t.Errorf("received %q, %v", buf[:n], err)
		}
		messages, _ := syscall.ParseSocketControlMessage(oob[:oobn])
		for _, m := range messages {
			received, _ := syscall.ParseUnixRights(&m)
			for _, fd := range received {
				got := make([]byte, 10)
				n, _ := syscall.Read(fd, got)
				if string(got[:n]) != "content" {
					t.Errorf("the descriptor reads %q", got[:n])
				}
				syscall.Close(fd)
			}
		}
		if len(messages) != 1 {
			t.Errorf("%d control messages", len(messages))
		}
		fmt.Fprint(rawFD(fds[1]), "{\"return\": {\"fd\": 7}, \"id\": 2}\r\n")
	})
	c, err := New(t.Context(), conn.(*net.UnixConn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	path := t.TempDir() + "/file"
	os.WriteFile(path, []byte("content"), 0o600)
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := c.Execute(t.Context(), "add-fd", map[string]int{"fdset-id": 1}, nil, file); err != nil {
		t.Fatal(err)
	}
}

type rawFD int

func (fd rawFD) Write(p []byte) (int, error) { return syscall.Write(int(fd), p) }

// FuzzMessages: any bytes are messages, within their bound, or an error.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(hello))
	f.Add([]byte(`{"return": {}, "id": 3}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true}}` + "\n"))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "no"}, "id": 1}` + "\n{}\n"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := bufio.NewReader(bytes.NewReader(wire))
		for {
			m, err := readMessage(r)
			if err != nil {
				return
			}
			kinds := 0
			for _, is := range []bool{m.Greeting != nil, m.Event != nil, m.Return != nil, m.Error != nil} {
				if is {
					kinds++
				}
			}
			if kinds != 1 {
				t.Fatalf("message of %d kinds: %+v", kinds, m)
			}
		}
	})
}
