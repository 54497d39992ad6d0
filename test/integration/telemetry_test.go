package integration

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/collector"
)

// TestTelemetry: a pod's way is seen from outside, as counts.
func TestTelemetry(t *testing.T) {
	address := freeAddress(t)
	d := startPrepared(t, "", func(d *daemon) {
		d.handler = "runc"
		d.configure(func(s string) string {
			return `metrics = "` + address + `"` + "\n" + strings.Replace(s, `default_handler = "vm"`, `default_handler = "runc"`, 1)
		})
	})
	d.pull(testImage)
	pod, config := d.runPod("seen", nil)
	d.launch(pod, config, shell("c", forever))
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for _, want := range []string{
		`pistis_cri_call_duration_seconds_count{code="OK",handler="runc",method="RunPodSandbox"} 1`,
		`pistis_cri_call_duration_seconds_count{code="OK",handler="runc",method="StartContainer"} 1`,
		`pistis_image_pull_duration_seconds_count{result="ok"} 1`,
		`pistis_pods{handler="runc",state="ready"} 1`, `pistis_containers{handler="runc",state="running"} 1`, `pistis_build_info{`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s among the metrics", want)
		}
	}
	d.stopAndRemove(pod)
}

// TestTraces: a trace goes from the CRI call through the daemon and the pod's own process to the runtime, and for a microVM
// into the guest.
func TestTraces(t *testing.T) {
	const service, trace = "runtime.v1.RuntimeService/", "4bf92f3577b34da6a3ce929d0e0e4736"
	for handler, want := range map[string][]string{
		"runc": {
			"RunPodSandbox/sandbox run/network setup", "RunPodSandbox/sandbox run/sandbox launch/namespaces",
			"RunPodSandbox/sandbox run/sandbox launch/monitor process",
			"CreateContainer/container create/layers", "CreateContainer/container create/task create/root file system",
			"CreateContainer/container create/task create/monitor create",
			"StartContainer/container start/task start/monitor start/cgroup",
			"StartContainer/container start/task start/monitor start/runtime run",
			"ExecSync/container exec/task start/monitor start/runtime exec",
			"StopPodSandbox/sandbox stop/container stop",
		},
		"vm": {
			"RunPodSandbox/sandbox run/network setup", "RunPodSandbox/sandbox run/sandbox launch/scratch disk",
			"RunPodSandbox/sandbox run/sandbox launch/shim process",
			"RunPodSandbox/sandbox run/sandbox launch/shim StartSandbox/vm network/taps",
			"RunPodSandbox/sandbox run/sandbox launch/shim StartSandbox/vm network/cgroup",
			"RunPodSandbox/sandbox run/sandbox launch/shim StartSandbox/vm vmm",
			"RunPodSandbox/sandbox run/sandbox launch/shim StartSandbox/vm kernel+agent/plug scratch",
			"RunPodSandbox/sandbox run/sandbox launch/shim StartSandbox/vm kernel+agent/agent handshake",
			"RunPodSandbox/sandbox run/sandbox launch/shim StartSandbox/vm configure/guest configure/network",
			"RunPodSandbox/sandbox run/sandbox launch/shim StartSandbox/vm configure/guest configure/mount scratch",
			"CreateContainer/container create/layers",
			"CreateContainer/container create/task create/shim Create/plug layers",
			"CreateContainer/container create/task create/shim Create/guest create container/mount layers",
			"CreateContainer/container create/task create/shim Create/guest create container/runc create",
			"CreateContainer/container create/task create/shim Create/open streams",
			"StartContainer/container start/task start/shim Start/guest start/runc start",
			"ExecSync/container exec/task start/shim Start/guest start/runc exec",
			"StopPodSandbox/sandbox stop/container stop",
		},
	} {
		t.Run(handler, func(t *testing.T) {
			c, err := collector.Start()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			d := startPrepared(t, "", func(d *daemon) {
				d.handler = handler
				d.configure(func(s string) string {
					// Of the calls only those of this trace are recorded.
					return strings.Replace(s, `default_handler = "vm"`, `default_handler = "`+handler+`"`, 1) + "\n[tracing]\nendpoint = \"" + c.URL + "\"\nratio = 0.0\n"
				})
			})
			d.pull(testImage)
			d.traceparent = "00-" + trace + "-00f067aa0ba902b7-01"
			pod, config := d.runPod("seen", nil)
			d.execSync(d.launch(pod, config, shell("c", forever)), "true")
			failing := shell("f", "")
			failing.Command = []string{"/no/such/program"}
			if _, err := d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: d.create(pod, config, failing)}); err == nil {
				t.Error("a program that is not there was started")
			}
			d.stopAndRemove(pod)
			d.stop() // sends what is left
			paths, outside := c.In(trace), c.Outside()
			d.start() // for the clean-up
			for _, want := range want {
				if !slices.Contains(paths, service+want) {
					t.Errorf("no %s in the trace", want)
				}
			}
			if len(outside) > 0 {
				t.Errorf("not within the time of what they are a part of: %q", outside)
			}
			if all := c.Paths(); len(all) != len(paths) {
				t.Errorf("there are %d kinds of spans in the trace, and %d in all", len(paths), len(all))
			}
			t.Logf("the trace:\n%s", strings.Join(paths, "\n"))
		})
	}
}
