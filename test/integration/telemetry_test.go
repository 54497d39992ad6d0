package integration

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pistis-run/pistis/test/collector"
)

// TestTelemetry: a pod's way is seen from outside, as counts and as traces.
func TestTelemetry(t *testing.T) {
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	address := freeAddress(t)
	d := startPrepared(t, "", func(d *daemon) {
		d.handler = "runc"
		d.configure(func(s string) string {
			return `metrics = "` + address + `"` + "\n" + strings.Replace(s, `default_handler = "vm"`, `default_handler = "runc"`, 1) + "\n[tracing]\nendpoint = \"" + c.URL + "\"\n"
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
	d.stop() // sends what is left
	paths := c.Paths()
	d.start() // for the clean-up
	const service = "runtime.v1.RuntimeService/"
	for _, want := range []string{
		service + "RunPodSandbox/sandbox run/network setup", service + "RunPodSandbox/sandbox run/sandbox launch",
		service + "CreateContainer/container create/layers", service + "CreateContainer/container create/task create",
		service + "StartContainer/container start/task start", service + "StopPodSandbox/sandbox stop/container stop",
	} {
		if !slices.Contains(paths, want) {
			t.Errorf("no %s among the traces: %q", want, paths)
		}
	}
}
