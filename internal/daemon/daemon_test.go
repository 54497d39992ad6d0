package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/filelock"
	"github.com/pistis-run/pistis/internal/vmpod"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func TestOneDaemonPerDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the second one waits for a first that has just been killed
		root, state := filepath.Join(t.TempDir(), "a", "root"), t.TempDir()
		first, err := lockDirs(root, state)
		if err != nil {
			t.Fatal(err)
		}
		_, err = lockDirs(t.TempDir(), state)
		want := fmt.Sprintf("%s is in use by another pistisd (pid %d)", state, os.Getpid())
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v", err)
		}
		time.AfterFunc(filelock.Handover/2, func() {
			if err := first.Close(); err != nil {
				t.Error(err)
			}
		})
		second, err := lockDirs(root, state)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s")
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := listen(t.Context(), path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second listener: %v", err)
	}
	// A daemon that was killed leaves its socket behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	l, err = listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("over a file: %v", err)
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{filepath.Join(t.TempDir(), "n"), "@pistis-test-" + filepath.Base(t.TempDir())} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", name)
		if err := notify("READY=1"); err != nil {
			t.Error(err)
		}
		got := make([]byte, 64)
		n, err := conn.Read(got)
		if err != nil || string(got[:n]) != "READY=1" {
			t.Errorf("%q, %v", got[:n], err)
		}
		_ = conn.Close()
	}
}

func TestPodCIDR(t *testing.T) {
	cfg := config.Default().Network
	set := podCIDR(cfg)
	for cidr, ok := range map[string]bool{
		cfg.Bridge.IPv4: true, cfg.Bridge.IPv4 + "," + cfg.Bridge.IPv6: true, "10.99.0.0/24": false, "fd00::/64": false,
	} {
		if err := set(t.Context(), cidr); (err == nil) != ok || !ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", cidr, err)
		}
	}
	if err := set(t.Context(), "pods"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	cfg.CNIConfDir = "/etc/cni/net.d"
	if err := podCIDR(cfg)(t.Context(), "10.99.0.0/24"); err != nil {
		t.Error(err)
	}
}

// slow answers when it is told to, or when its call is cut off.
type slow struct {
	healthpb.UnimplementedHealthServer
	called, answer chan struct{}
}

func (s slow) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	close(s.called)
	select {
	case <-s.answer:
		return &healthpb.HealthCheckResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestServeDrains(t *testing.T) {
	for name, tt := range map[string]struct {
		drain time.Duration
		ends  bool
		want  codes.Code
	}{
		"a call that runs ends":  {time.Minute, true, codes.OK},
		"one that does not: cut": {time.Millisecond, false, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := listen(t.Context(), filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			s := slow{called: make(chan struct{}), answer: make(chan struct{})}
			server := grpc.NewServer()
			healthpb.RegisterHealthServer(server, s)
			ctx, terminate := context.WithCancel(t.Context())
			draining, served := make(chan struct{}), make(chan error, 1)
			go func() { served <- serve(ctx, server, listener, tt.drain, draining, quiet) }()
			conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			answered := make(chan error, 1)
			go func() {
				_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
				answered <- err
			}()
			<-s.called
			terminate()
			<-draining
			if tt.ends {
				close(s.answer)
			}
			if got := status.Code(<-answered); got != tt.want {
				t.Errorf("the call: got %v, want %v", got, tt.want)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "full"), make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sparse.Truncate(1<<30), sparse.Close()); err != nil {
		t.Fatal(err)
	}
	info, err := (&usage{dir: dir}).info(t.Context())
	if err != nil || info.Mountpoint != dir || info.UsedBytes < 64<<10 || info.UsedBytes > 1<<20 || info.UsedInodes != 3 {
		t.Errorf("%+v, %v", info, err)
	}
	info, err = (&usage{dir: filepath.Join(dir, "none")}).info(t.Context())
	if err != nil || info.UsedBytes != 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestGuestFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := (guestFiles{built: dir}).find(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "pistis guest build") {
		t.Error(err)
	}
	kernel := filepath.Join(dir, "k")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (guestFiles{Guest: vmpod.Guest{Kernel: kernel, Initrd: filepath.Join(dir, "none")}}).find(); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if g, err := (guestFiles{Guest: vmpod.Guest{Kernel: kernel, Initrd: kernel}}).find(); err != nil || g.Kernel != kernel {
		t.Error(g, err)
	}
}
