package telemetry

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
)

func TestMetrics(t *testing.T) {
	m := NewMetrics("1.2.3")
	m.Call("RunPodSandbox", "vm", codes.OK, 2*time.Millisecond)
	m.Call("RunPodSandbox", "vm", codes.OK, 20*time.Second)
	m.Pull("ok", 1000, time.Second)
	m.Pull("NotFound", -1, time.Second)
	m.Boot("kernel", time.Second)
	m.Leak("netns", nil)
	m.Leak("netns", errors.New("busy"))
	m.Census(func() (pods, containers map[State]int) {
		return map[State]int{{"vm", "ready"}: 2}, map[State]int{{"vm", "running"}: 3, {"vm", "exited"}: 1}
	})
	m.Counters(func() []Counter {
		return []Counter{
			{"vm", "one", "throttled", "disk", "", 3}, {"vm", "one", "microseconds", "disk", "in", 2_500_000}, {"vm", "one", "news", "disk", "", 1},
		}
	})
	const want = `
# HELP pistis_containers Containers on this node.
# TYPE pistis_containers gauge
pistis_containers{handler="vm",state="exited"} 1
pistis_containers{handler="vm",state="running"} 3
# HELP pistis_image_pull_bytes_total Bytes of the blobs of pulled images, those that were on the node already included.
# TYPE pistis_image_pull_bytes_total counter
pistis_image_pull_bytes_total 1000
# HELP pistis_leaks_cleaned_total Those of them that were removed.
# TYPE pistis_leaks_cleaned_total counter
pistis_leaks_cleaned_total{kind="netns"} 1
# HELP pistis_leaks_found_total Things of pods that nobody knows any more, found when the daemon started.
# TYPE pistis_leaks_found_total counter
pistis_leaks_found_total{kind="netns"} 2
# HELP pistis_pods Pods on this node.
# TYPE pistis_pods gauge
pistis_pods{handler="vm",state="ready"} 2
# HELP pistis_vmm_operation_seconds_total Time that these took.
# TYPE pistis_vmm_operation_seconds_total counter
pistis_vmm_operation_seconds_total{direction="in",handler="vm",part="disk",sandbox="one"} 2.5
# HELP pistis_vmm_throttled_total How often a VMM made its guest wait for a rate.
# TYPE pistis_vmm_throttled_total counter
pistis_vmm_throttled_total{direction="",handler="vm",part="disk",sandbox="one"} 3
`
	names := []string{"pistis_pods", "pistis_containers", "pistis_image_pull_bytes_total", "pistis_leaks_found_total", "pistis_leaks_cleaned_total", "pistis_vmm_throttled_total", "pistis_vmm_operation_seconds_total"}
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	for name, n := range map[string]int{"pistis_cri_call_duration_seconds": 1, "pistis_image_pull_duration_seconds": 2, "pistis_vm_boot_duration_seconds": 1} {
		if got, err := testutil.GatherAndCount(m.registry, name); err != nil || got != n {
			t.Errorf("%s: %d series, %v", name, got, err)
		}
	}
}

func TestServe(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	m := NewMetrics("1.2.3")
	for _, address := range []string{"", "127.0.0.1:0"} {
		stop, err := m.Serve(address, log)
		if err != nil {
			t.Fatal(err)
		}
		if err := stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := m.Serve("127.0.0.1:99999", log); err == nil {
		t.Error("a bad address is served")
	}
}
