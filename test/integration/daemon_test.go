package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/images"
)

// configure changes the configuration that was written.
func (d *daemon) configure(change func(string) string) {
	d.t.Helper()
	b, err := os.ReadFile(d.config)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.config, []byte(change(string(b))), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// drain sets how long SIGTERM waits for calls.
func drain(limit string) func(*daemon) {
	return func(d *daemon) {
		d.configure(func(s string) string { return fmt.Sprintf("drain_timeout = %q\n", limit) + s })
	}
}

// launching waits until a pod's shim is being started.
func (d *daemon) launching() {
	d.t.Helper()
	eventually(d.t, "a shim to be started", func() bool {
		entries, err := os.ReadDir(filepath.Join(d.scope.State, "pods"))
		return err == nil && len(entries) > 0
	})
}

// TestDrain: calls that run when SIGTERM comes end well, pods stay, and the next daemon takes over.
func TestDrain(t *testing.T) {
	d := startPrepared(t, "memory_mib = 192\n", drain("3m"))
	d.pull(testImage)
	answered := make(chan error, 1)
	var pod string
	go func() {
		var err error
		pod, err = d.tryPod("drained")
		answered <- err
	}()
	d.launching()
	d.stop()
	if err := <-answered; err != nil {
		t.Fatalf("a call that ran at SIGTERM: %v\n%s", err, d.logs())
	}
	d.start()
	expect(t, "the pod", d.only("after the restart", runtime.PodSandboxState_SANDBOX_READY), pod)
	expect(t, "output", d.run(pod, d.podConfig("drained"), shell("main", "echo after")), "after\n")
	d.stopAndRemove(pod)
}

// TestDrainIsBounded: what does not end in time is cut off, and leaves nothing.
func TestDrainIsBounded(t *testing.T) {
	d := startPrepared(t, "memory_mib = 192\n", drain("100ms"))
	asked := make(chan struct{}, 100)
	slow := images.StartWith(t, images.Options{Groups: []images.Group{images.Tour}, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				asked <- struct{}{}
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		})
	}})
	answered := make(chan error, 2)
	go func() {
		_, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: spec(slow.Ref("pistis/tour:latest"))})
		answered <- err
	}()
	go func() {
		_, err := d.tryPod("cut-off")
		answered <- err
	}()
	<-asked
	d.launching()
	d.stop()
	for range 2 {
		if err := <-answered; status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
			t.Errorf("a call that was cut off: %v", err)
		}
	}
	d.start()
	d.noImages("a pull that was cut off")
	d.nothing("after calls that were cut off")
}

// TestTwoDaemons: the second one on the same directories says who has them, and leaves the first alone.
func TestTwoDaemons(t *testing.T) {
	d := startDaemon(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary("pistisd"), "--config", d.config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("in use by another pistisd (pid %d)", d.cmd.Process.Pid)) {
		t.Errorf("the second daemon ended with %v and said %s", err, out)
	}
	out, err = exec.CommandContext(ctx, binary("pistisd"), "--config", d.config, "wipe", "--yes").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in use by another pistisd") {
		t.Errorf("wiping below a daemon that runs ended with %v and said %s", err, out)
	}
	d.all()
}

// TestMissingParts: without kernel, shim, QEMU or mkfs.ext4 the daemon serves, says that it cannot run pods and what to do,
// and leaves nothing of pods that it refused.
func TestMissingParts(t *testing.T) {
	guest := os.Getenv("PISTIS_GUEST")
	// A PATH with all that the daemon may use but one program.
	without := func(program string) func(*daemon) {
		return func(d *daemon) { d.env = []string{"PATH=" + pathWithout(t, program)} }
	}
	replaced := func(old, by string) func(*daemon) {
		return func(d *daemon) {
			d.configure(func(s string) string { return strings.ReplaceAll(s, old, by) })
		}
	}
	nothing := func(*daemon) {}
	for _, c := range []struct {
		name, extra string
		prepare     func(*daemon)
		words       []string
	}{
		{"kernel", "", replaced(filepath.Join(guest, "vmlinuz"), "/no/such/vmlinuz"), []string{"vm.kernel", "/no/such/vmlinuz"}},
		{"initrd", "", replaced(filepath.Join(guest, "initrd"), "/no/such/initrd"), []string{"vm.initrd", "/no/such/initrd"}},
		{"guest", "", func(d *daemon) {
			d.configure(func(s string) string { head, _, _ := strings.Cut(s, "[vm]"); return head })
		}, []string{"pistis guest build", "vm.kernel"}},
		{"qemu", "qemu = \"/no/such/qemu\"\n", nothing, []string{"/no/such/qemu"}},
		{"qemu in PATH", "", without("qemu-system-x86_64"), []string{"qemu"}},
		{"shim", "shim = \"/no/such/shim\"\n", nothing, []string{"/no/such/shim"}},
		{"mkfs", "", without("mkfs.ext4"), []string{"mkfs.ext4", "e2fsprogs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := startPrepared(t, c.extra, c.prepare)
			_, err := d.tryPod("none")
			refused(t, "a pod", err, codes.FailedPrecondition, c.words...)
			resp, err := d.Status(d.call(), &runtime.StatusRequest{Verbose: true})
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			for _, condition := range resp.Status.Conditions {
				if condition.Type == "RuntimeReady" && !condition.Status {
					said = condition.Message
				}
			}
			for _, w := range c.words {
				if !strings.Contains(said, w) {
					t.Errorf("RuntimeReady says %q and not %q", said, w)
				}
			}
			d.nothing("after a pod that was refused")
			expect(t, "the daemon lives", d.cmd.Process.Signal(syscall.Signal(0)), nil)
		})
	}
}

// pathWithout is a PATH in which one program is missing.
func pathWithout(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.Name() == program {
				continue
			}
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// TestHandlerOfAnotherType: a daemon that could not end the pods of a handler does not start, and touches nothing of them.
func TestHandlerOfAnotherType(t *testing.T) {
	const asVM = "[handlers.mine]\ntype = \"vm\"\n"
	d := startDaemon(t, "[handlers.vm]\ntype = \"vm\"\n"+asVM)
	d.handler = "mine"
	d.pull(testImage)
	pod, config := d.runPod("typed", nil)
	id := d.launch(pod, config, shell("main", forever))
	d.stop()
	asOCI := fmt.Sprintf("[handlers.mine]\ntype = \"oci\"\npath = %q\n", runtimeByPath(t))
	d.configure(func(s string) string { return strings.Replace(s, asVM, asOCI, 1) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary("pistisd"), "--config", d.config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), pod[:13]) || !strings.Contains(string(out), "handlers.mine.type") {
		t.Errorf("with another type: %v, %s", err, out)
	}
	d.configure(func(s string) string { return strings.Replace(s, asOCI, asVM, 1) })
	d.start()
	expect(t, "the pod", d.only("with the old type", runtime.PodSandboxState_SANDBOX_READY), pod)
	expect(t, "its container", d.execSync(id, "echo", "alive"), "alive\n")
	d.stopAndRemove(pod)
}
