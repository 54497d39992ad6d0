package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/pistis-run/pistis/test/images"
	"github.com/pistis-run/pistis/test/leak"
)

// patience bounds every wait: guests may be emulated on a machine that does other things too. In the lab their host is.
var patience = map[bool]time.Duration{false: 4 * time.Minute, true: 10 * time.Minute}[os.Getenv("PISTIS_ACCELERATION") == "kvm"]

// binary is the path of one of our commands.
func binary(name string) string { return filepath.Join(os.Getenv("PISTIS_BIN"), name) }

// needs skips the test, loudly, where the host cannot run it.
func needs(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() != 0:
		t.Skip("SKIPPED: integration tests need root")
	case os.Getenv("PISTIS_BIN") == "" || os.Getenv("PISTIS_GUEST") == "":
		t.Skip("SKIPPED: integration tests need PISTIS_BIN and PISTIS_GUEST: run `make test`")
	}
}

// daemon is a pistisd under test.
type daemon struct {
	t      *testing.T
	scope  leak.Scope
	socket string
	config string
	log    *os.File
	env    []string // of the process, beside the test's own

	cmd *exec.Cmd
	// done is closed when the process has ended, with its error in ended.
	done  chan struct{}
	ended error

	conn *grpc.ClientConn
	runtime.RuntimeServiceClient
	images runtime.ImageServiceClient
	// handler is that of the pods that runPod runs.
	handler string
	// traceparent has calls made within a trace, as the kubelet makes them; empty: none.
	traceparent string
}

// startDaemon starts a pistisd of the test's own; extra is TOML that is added to its configuration, where it
// continues the table [vm].
func startDaemon(t *testing.T, extra string) *daemon {
	t.Helper()
	return startPrepared(t, extra, func(*daemon) {})
}

// startPrepared is startDaemon with what must be done before the process starts, when its directories are there.
func startPrepared(t *testing.T, extra string, prepare func(*daemon)) *daemon {
	t.Helper()
	needs(t)
	hash := fnv.New32a()
	fmt.Fprint(hash, t.Name(), os.Getpid())
	id := hash.Sum32()
	// Sockets have short names: the state directory is not below the test's long one.
	state := fmt.Sprintf("/run/pt%08x", id)
	d := &daemon{
		t:      t,
		scope:  leak.Scope{Root: filepath.Join(t.TempDir(), "root"), State: state, Bridge: fmt.Sprintf("pt%08x", id), Cgroup: fmt.Sprintf("pt%08x", id)},
		socket: filepath.Join(state, "cri.sock"), handler: cmp.Or(os.Getenv("PISTIS_HANDLER"), "vm"),
	}
	for _, dir := range []string{d.scope.Root, state} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	// Root in a user namespace has to find its way to its root file system.
	if err := os.Chmod(filepath.Dir(filepath.Dir(d.scope.Root)), 0o711); err != nil {
		t.Fatal(err)
	}
	d.config = filepath.Join(state, "config.toml")
	if err := os.WriteFile(d.config, []byte(d.toml(id)+extra), 0o600); err != nil {
		t.Fatal(err)
	}
	logFile, err := os.Create(filepath.Join(t.TempDir(), "pistisd.log"))
	if err != nil {
		t.Fatal(err)
	}
	d.log = logFile
	prepare(d)
	t.Cleanup(d.cleanUp)
	d.start()
	return d
}

// toml is the configuration that keeps daemons of concurrent tests apart.
func (d *daemon) toml(id uint32) string {
	return fmt.Sprintf(`root = %q
state = %q
socket = %q
default_handler = "vm"
cgroup_parent = %q
[log]
level = "debug"
[network]
cni_conf_dir = ""
[network.bridge]
name = %q
ipv4 = "10.%d.%d.0/24"
ipv6 = "fd00:%x::/64"
[image.mirrors]
"registry.test" = [%q]
[vm]
kernel = %q
initrd = %q
modules = %q
%s`, d.scope.Root, d.scope.State, d.socket, d.scope.Cgroup, d.scope.Bridge, 100+id%100, (id>>8)%256, id&0xffff,
		"http://"+registry(d.t), filepath.Join(os.Getenv("PISTIS_GUEST"), "vmlinuz"), filepath.Join(os.Getenv("PISTIS_GUEST"), "initrd"),
		filepath.Join(os.Getenv("PISTIS_GUEST"), "modules.img"), underKVM())
}

// underKVM is for a host whose KVM works and is emulated itself: the lab.
func underKVM() string {
	if os.Getenv("PISTIS_ACCELERATION") != "kvm" {
		return ""
	}
	return "acceleration = \"kvm\"\nboot_timeout = \"4m\"\n"
}

// start starts the process and waits until it serves.
func (d *daemon) start() {
	d.t.Helper()
	d.cmd = exec.Command(binary("pistisd"), "--config", d.config)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.Env = append(os.Environ(), d.env...)
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	d.done = done
	go func() {
		defer close(done)
		d.ended = d.cmd.Wait()
	}()
	d.connect()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		_, err := d.Version(ctx, &runtime.VersionRequest{})
		answered <- err
	}()
	select {
	case err := <-answered:
		if err != nil {
			d.t.Fatalf("pistisd does not answer: %v\n%s", err, d.logs())
		}
	case <-d.done:
		d.t.Fatalf("pistisd ended: %v\n%s", d.ended, d.logs())
	}
}

// connect makes a connection to the process that was just started: one to its predecessor may not have noticed its end.
func (d *daemon) connect() {
	d.t.Helper()
	if d.conn != nil {
		d.conn.Close()
	}
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(32<<20)))
	if err != nil {
		d.t.Fatal(err)
	}
	d.conn, d.RuntimeServiceClient, d.images = conn, runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
}

// kill ends the daemon as a crash would; what it started goes on.
func (d *daemon) kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	<-d.done
}

// stop ends the daemon as systemd would.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Error(err)
	}
	select {
	case <-d.done:
		if d.ended != nil {
			d.t.Errorf("pistisd ended with %v", d.ended)
		}
	case <-time.After(patience):
		d.t.Error("pistisd did not end after SIGTERM")
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

// cleanUp removes all pods, stops the daemon and looks for what was left.
func (d *daemon) cleanUp() {
	defer d.log.Close()
	defer d.conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pods, err := d.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		d.t.Errorf("list pods: %v", err)
	}
	for _, p := range pods.GetItems() {
		if _, err := d.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			d.t.Errorf("remove pod: %v", err)
		}
	}
	d.stop()
	found, err := leak.Find(d.scope)
	if err != nil {
		d.t.Error(err)
	}
	for _, line := range found {
		d.t.Errorf("left behind: %s", line)
	}
	d.checkLog()
	if out, err := exec.Command(binary("pistisd"), "--config", d.config, "wipe", "--yes").CombinedOutput(); err != nil {
		d.t.Errorf("wipe: %v: %s", err, out)
	}
	if d.t.Failed() {
		d.t.Logf("pistisd's log:\n%s", d.logs())
	}
	if err := os.RemoveAll(d.scope.State); err != nil {
		d.t.Error(err)
	}
}

// checkLog fails the test for what no daemon may ever say.
func (d *daemon) checkLog() {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		d.t.Error(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, crierrors.ErrRegistryUnavailable.Error()) || strings.Contains(line, crierrors.ErrSignatureValidationFailed.Error()) {
			continue // the ones that CRI wants without a code
		}
		for _, never := range []string{" code=Unknown", "call panicked", "DATA RACE"} {
			if strings.Contains(line, never) {
				d.t.Errorf("the log says %q: %s", never, line)
			}
		}
	}
}

// logs is the end of the daemon's log.
func (d *daemon) logs() string {
	b, _ := os.ReadFile(d.log.Name())
	const most = 24 << 10
	if len(b) > most {
		b = append([]byte("…"), b[len(b)-most:]...)
	}
	return string(b)
}

// pistis runs the operator's command against the daemon.
func (d *daemon) pistis(args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary("pistis"), append([]string{"--socket", d.socket}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// lines splits output into its lines, without an empty one at the end.
func lines(s string) []string { return strings.Split(strings.TrimRight(s, "\n"), "\n") }

// registry serves the test images for the length of a test and returns its address.
func registry(t *testing.T) string {
	t.Helper()
	return images.Start(t, images.Tour, images.Tests, images.Broken).Address
}
