package cloudhypervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// processors are those of a Cloud Hypervisor: what is to leave is there until the guest lets go of it, and a wish for as many as
// are there does nothing.
type processors struct {
	mu               sync.Mutex
	present, leaving int
	// holds: so many times the guest is found to hold on to them; then it lets go. A negative number is for ever; then held is
	// called.
	holds int
	held  func()
}

func (p *processors) resize(n int) (status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaving > 0 && p.holds == 0 {
		p.present, p.leaving = p.present-p.leaving, 0
	}
	switch {
	case n == p.present:
	case p.leaving > 0:
		if p.holds--; p.holds < 0 {
			p.held()
		}
		return ejecting
	case n < p.present:
		p.leaving = p.present - n
	default:
		p.present = n
	}
	return http.StatusNoContent
}

// serve answers until the connection ends.
func (p *processors) serve(conn net.Conn) {
	for r := bufio.NewReader(conn); ; {
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		var wish resize
		if err := json.NewDecoder(request.Body).Decode(&wish); err != nil {
			return
		}
		fmt.Fprintf(conn, "HTTP/1.1 %d \r\nContent-Length: 0\r\n\r\n", p.resize(wish.VCPUs))
	}
}

// TestProcessorsThatLeave: they have gone before more are asked for, which would be taken for those that are about to go.
func TestProcessorsThatLeave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &processors{present: 1, holds: 2}
	var serving sync.WaitGroup
	serving.Go(func() {
		conn, err := l.Accept()
		if err == nil {
			p.serve(conn)
			conn.Close()
		}
	})
	defer serving.Wait()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{
		Machine: &vmm.Machine{}, api: vmm.NewAPI("Cloud Hypervisor", conn.(*net.UnixConn)), vcpus: 1,
		cfg: hypervisor.Config{Size: hypervisor.Size{VCPUs: 1, MaxVCPUs: 4}},
	}
	defer v.api.Close()
	set := func(ctx context.Context, n int, is error) {
		t.Helper()
		now, err := v.ResizeVCPUs(ctx, n)
		p.mu.Lock()
		defer p.mu.Unlock()
		if !errors.Is(err, is) || err == nil && (now != n || p.present != n) {
			t.Errorf("%d processors: %d, %v, and there are %d", n, now, err, p.present)
		}
	}
	set(t.Context(), 3, nil)
	set(t.Context(), 1, nil)
	set(t.Context(), 3, nil)
	impatient, cancel := context.WithCancelCause(t.Context())
	late := errors.New("too late")
	p.mu.Lock()
	p.holds, p.held = -1, func() { cancel(late) }
	p.mu.Unlock()
	set(impatient, 2, late)
	set(impatient, 3, late)
	p.mu.Lock()
	p.holds = 0
	p.mu.Unlock()
	set(t.Context(), 3, nil)
}
