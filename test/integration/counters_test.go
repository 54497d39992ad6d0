package integration

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var vmmMetric = regexp.MustCompile(`^pistis_vmm_(\w+)\{direction="(\w*)",handler="(\w+)",part="(\w+)",sandbox="(\w+)"\} (\S+)$`)

// vmmMetrics are what the VMM of a pod has counted, as "bytes_total disk in".
func (d *daemon) vmmMetrics(address, pod string) map[string]float64 {
	d.t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	expect(d.t, "status of the metrics", resp.StatusCode, http.StatusOK)
	found := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		m := vmmMetric.FindStringSubmatch(lines.Text())
		if m == nil || m[5] != pod {
			continue
		}
		expect(d.t, "handler of a metric", m[3], d.handler)
		if found[strings.TrimSpace(m[1]+" "+m[4]+" "+m[2])], err = strconv.ParseFloat(m[6], 64); err != nil {
			d.t.Error(err)
		}
	}
	if err := lines.Err(); err != nil {
		d.t.Fatal(err)
	}
	return found
}

// TestVMMCounters: what VMMs count is told, also after the daemon was made anew, and is missing while a VMM hangs. Of
// Firecracker it shows that rates and CPU templates of the configuration are in force.
func TestVMMCounters(t *testing.T) {
	address := freeAddress(t)
	d := startPrepared(t, "", func(d *daemon) {
		d.configure(func(s string) string { return `metrics = "` + address + `"` + "\n" + s })
	})
	d.pull(testImage)
	const size = 2 << 20
	// work writes to the pod's disk and gets as much from the host.
	work := func(name string) (pod string, counts map[string]float64, flags string) {
		t.Helper()
		pod, config := d.runPod(name, nil)
		gateway := strings.TrimSpace(d.run(pod, config, shell("route", "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")))
		listener, err := net.Listen("tcp", net.JoinHostPort(gateway, "0"))
		if err != nil {
			t.Fatal(err)
		}
		host := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, size)) })}
		go func() { _ = host.Serve(listener) }()
		defer host.Shutdown(context.Background())
		out := d.run(pod, config, shell("works", script(
			fmt.Sprintf("dd if=/dev/zero of=/tmp/file bs=64k count=%d oflag=direct", size>>16),
			"wget -q -O - http://"+listener.Addr().String()+"/ | wc -c", "grep -m1 ^flags /proc/cpuinfo",
		)))
		got, flags, _ := strings.Cut(out, "\n")
		expect(t, "bytes from the host", strings.TrimSpace(got), fmt.Sprint(size))
		return pod, d.vmmMetrics(address, pod), flags
	}
	free, counts, flags := work("free")
	t.Logf("counted: %v", counts)
	for what, least := range map[string]float64{"bytes_total disk out": size, "bytes_total disk in": 1, "operations_total disk out": 1} {
		if counts[what] < least {
			t.Errorf("%s: %v, want at least %v", what, counts[what], least)
		}
	}
	d.hungVMM(address, free)
	if d.handler != "fc" {
		d.stopAndRemove(free)
		return
	}
	if counts["bytes_total card in"] < size || counts["exits_total mmio out"] == 0 {
		t.Errorf("Firecracker counted %v", counts)
	}
	for what, n := range counts {
		if strings.HasPrefix(what, "throttled_total") && n != 0 {
			t.Errorf("%s: %v, and no rate was asked for", what, n)
		}
	}
	template := filepath.Join(d.scope.Root, "template.json")
	text := fmt.Sprintf(`{"cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [{"register": "ebx", "bitmap": "0b0%s"}]}]}`, strings.Repeat("x", 8))
	if err := os.WriteFile(template, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d.configure(func(s string) string {
		return s + fmt.Sprintf("\n[firecracker]\ndisk_bandwidth = %d\nnet_bandwidth = %d\ncpu_template = %q\n", size/8, size/8, template)
	})
	d.start()
	for what, n := range d.vmmMetrics(address, free) {
		if n < counts[what] {
			t.Errorf("%s fell from %v to %v", what, counts[what], n)
		}
	}
	bound, limited, masked := work("bound")
	t.Logf("counted with rates: %v", limited)
	for _, what := range []string{"throttled_total disk", "throttled_total card in"} {
		if limited[what] == 0 {
			t.Errorf("%s: 0, and a rate was asked for", what)
		}
	}
	if !strings.Contains(flags+" ", " bmi2 ") || strings.Contains(masked+" ", " bmi2 ") {
		t.Errorf("flags without a template that hides bmi2: %s\nand with it: %s", flags, masked)
	}
	if err := os.WriteFile(template, []byte(`{"cpuid_modifiers": [{"leaf": "0x3fff", "subleaf": "0x0", "flags": 0, "modifiers": [{"register": "eax", "bitmap": "0b0"}]}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: d.podConfig("refused"), RuntimeHandler: d.handler})
	if err == nil || !strings.Contains(err.Error(), "not supported by KVM: Leaf: 3fff") {
		t.Errorf("a template that cannot be: %v", err)
	}
	d.stopAndRemove(free)
	d.stopAndRemove(bound)
}

// hungVMM: the metrics of the others are told while a VMM does not answer.
func (d *daemon) hungVMM(address, pod string) {
	d.t.Helper()
	pid := d.process(pod, "vmmPid")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	for range 2 {
		expect(d.t, "metrics of a VMM that hangs", len(d.vmmMetrics(address, pod)), 0)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, "metrics of a VMM that goes on", func() bool { return len(d.vmmMetrics(address, pod)) > 0 })
}
