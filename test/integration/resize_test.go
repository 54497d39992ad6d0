package integration

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// TestResizeInPlace: a pod that runs gets processors and memory with its limits, its containers can use them, and it gives
// them back.
func TestResizeInPlace(t *testing.T) {
	d := startDaemon(t, "memory_mib = 256\nmax_vcpus = 2\nmax_memory_mib = 1024\n")
	d.pull(testImage)
	pod, config := d.runPod("resized", func(c *runtime.PodSandboxConfig) {
		c.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000, MemoryLimitInBytes: 64 << 20}
	})
	c := shell("resized", forever)
	c.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000, MemoryLimitInBytes: 64 << 20}
	id := d.launch(pod, config, c)
	update := func(quota, memory int64) error {
		_, err := d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtime.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: quota, MemoryLimitInBytes: memory << 20,
		}})
		return err
	}
	memory := func() int {
		kib, err := strconv.Atoi(strings.TrimSpace(d.execSync(id, "sh", "-c", "grep MemTotal /proc/meminfo | tr -dc 0-9")))
		if err != nil {
			t.Fatal(err)
		}
		return kib >> 10
	}
	processors := func() string { return strings.TrimSpace(d.execSync(id, "nproc")) }
	size := func(what, vcpus string, mib int) {
		t.Helper()
		info := d.info(pod)
		expect(t, what+": processors of the VM", info["vcpus"], vcpus)
		expect(t, what+": its memory", info["memoryBytes"], strconv.Itoa(mib<<20))
		expect(t, what+": processors in the guest", processors(), vcpus)
	}
	first := memory()
	size("at first", "1", 320)

	grown := "2"
	if err := update(200000, 64); os.Getenv("PISTIS_HANDLER") == "fc" {
		refused(t, "processors for a hypervisor that adds none", err, codes.FailedPrecondition, "adds no processors")
		grown = "1"
	} else if err != nil {
		t.Fatal(err)
	}
	err := update(100000, 512)
	if info := d.info(pod); info["hypervisor"] == "firecracker" && !vmm.AtLeast(info["hypervisorVersion"], 1, 14) {
		refused(t, "memory for a Firecracker that adds none", err, codes.FailedPrecondition, info["hypervisorVersion"], "1.14 or later")
		size("after what was refused", "1", 320)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	size("after a container has grown", "1", 320+512) // 256 and 512 in steps of 128 beyond 320
	if got := memory() - first; got < 460 || got > 512 {
		t.Errorf("the guest has %d MiB more", got)
	}
	// The new limit can be used: by a program that keeps more than the guest had at first.
	expect(t, "what a program keeps", strings.TrimSpace(d.execSync(id, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=380M count=1 2>&1 | head -1")), "1+0 records in")
	refused(t, "more than the bound", update(100000, 2048), codes.ResourceExhausted, "2048 MiB", "vm.max_memory_mib")
	if grown == "2" {
		refused(t, "more processors than the bound", update(300000, 512), codes.ResourceExhausted, "3.000 processors")
	}
	status, err := d.ContainerStatus(d.call(), &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the limit after what was refused", status.Status.Resources.Linux.MemoryLimitInBytes, 512<<20)

	// As the kubelet does it: containers first, then the pod.
	if err := update(100000, 64); err != nil {
		t.Fatal(err)
	}
	size("after a container has shrunk", "1", 320)
	if err := d.resizePod(pod, 300<<20); err != nil {
		if grown == "2" {
			t.Fatal(err)
		}
		refused(t, "processors for the pod", err, codes.FailedPrecondition, "adds no processors")
		return
	}
	size("after the pod has grown", grown, 576)
	if _, err := d.UpdatePodSandboxResources(d.call(), &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: pod, Resources: &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000, MemoryLimitInBytes: 64 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	size("after the pod has shrunk", "1", 320)
	if got := memory() - first; got < -4 || got > 4 {
		t.Errorf("the guest has %d MiB more than at first", got)
	}
}
