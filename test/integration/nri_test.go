package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nriPlugin notes what it is told, and changes containers by their names.
type nriPlugin struct {
	volume string // of the host
	stub   stub.Stub

	mu    sync.Mutex
	notes []string
}

func (p *nriPlugin) note(what, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notes = append(p.notes, what+" "+name)
}

func (p *nriPlugin) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	notes := p.notes
	p.notes = nil
	return notes
}

func (p *nriPlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, s := range pods {
		p.note("there is pod", s.Name)
	}
	for _, c := range containers {
		p.note("there is "+strings.ToLower(c.State.String()), c.Name)
	}
	return nil, nil
}

func (p *nriPlugin) RunPodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("run pod", s.Name)
	if s.Name == "unwanted" {
		return errors.New("not on this node")
	}
	return nil
}

func (p *nriPlugin) UpdatePodSandbox(_ context.Context, s *api.PodSandbox, _, resources *api.LinuxResources) error {
	p.note(fmt.Sprintf("update to %d MiB pod", resources.GetMemory().GetLimit().GetValue()>>20), s.Name)
	if resources.GetMemory().GetLimit().GetValue() > 1<<40 {
		return errors.New("that much there is not")
	}
	return nil
}

func (p *nriPlugin) PostUpdatePodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("updated pod", s.Name)
	return nil
}

func (p *nriPlugin) StopPodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("stop pod", s.Name)
	return nil
}

func (p *nriPlugin) RemovePodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("remove pod", s.Name)
	return nil
}

func (p *nriPlugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", c.Name)
	a := &api.ContainerAdjustment{}
	switch c.Name {
	case "adjusted":
		a.AddEnv("FROM_PLUGIN", "yes")
		a.AddMount(&api.Mount{Destination: "/plugin", Source: p.volume, Type: "bind", Options: []string{"rbind", "ro"}})
		a.SetLinuxMemoryLimit(64 << 20)
	case "hooked":
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/true"}}})
	case "greedy":
		a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network"})
	}
	return a, nil, nil
}

func (p *nriPlugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("created", c.Name)
	return nil
}

func (p *nriPlugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("start", c.Name)
	if c.Name == "forbidden" {
		return errors.New("it must not start")
	}
	return nil
}

func (p *nriPlugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("started", c.Name)
	return nil
}

func (p *nriPlugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("update", c.Name)
	u := &api.ContainerUpdate{}
	u.SetContainerId(c.Id)
	u.SetLinuxCPUShares(300)
	return []*api.ContainerUpdate{u}, nil
}

func (p *nriPlugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("updated", c.Name)
	return nil
}

func (p *nriPlugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stop", c.Name)
	u := &api.ContainerUpdate{} // of no use any more, and no reason to wait for itself
	u.SetContainerId(c.Id)
	u.SetLinuxCPUShares(500)
	return []*api.ContainerUpdate{u}, nil
}

func (p *nriPlugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("remove", c.Name)
	return nil
}

// connectPlugin registers a plugin; the stub returns when it is configured, so that its first event may take a moment.
func connectPlugin(t *testing.T, socket string) *nriPlugin {
	t.Helper()
	p := &nriPlugin{volume: t.TempDir()}
	if err := os.WriteFile(filepath.Join(p.volume, "file"), []byte("of the plugin\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.stub, err = stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx("10"), stub.WithSocketPath(socket)); err != nil {
		t.Fatal(err)
	}
	if err := p.stub.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stub.Stop)
	return p
}

// TestNRI: a plugin takes part in the life of pods on the host's kernel and of microVM pods.
func TestNRI(t *testing.T) {
	var socket string
	d := startPrepared(t, "", func(d *daemon) {
		socket = filepath.Join(d.scope.State, "nri.sock")
		d.configure(func(s string) string {
			return s + fmt.Sprintf("[nri]\nenabled = true\nsocket = %q\nplugin_dir = %q\nconfig_dir = %q\n", socket, t.TempDir(), t.TempDir())
		})
	})
	if reason := notReady(d, "runc"); reason != "" {
		t.Skipf("SKIPPED, not tested: handler runc: %s", reason)
	}
	d.pull(testImage)
	d.handler = "runc"
	early, config := d.runPod("early", nil)
	d.launch(early, config, shell("old", forever))
	p := connectPlugin(t, socket)
	var found []string
	eventually(t, "what there is", func() bool { found = append(found, p.take()...); return len(found) == 2 })
	expect(t, "what there was before", fmt.Sprint(found), "[there is pod early there is container_running old]")

	for _, handler := range []string{"runc", "vm"} {
		d.handler = handler
		checkPlugin(t, d, p)
	}
	d.handler = "runc"
	_, err := d.tryPod("unwanted")
	refused(t, "a pod that the plugin refuses", err, codes.FailedPrecondition)
	p.take()
	d.stopAndRemove(early)
	expect(t, "the end of a pod", fmt.Sprint(p.take()), "[stop old stop pod early remove old remove pod early]")
	d.nothing("after plugins")
}

func checkPlugin(t *testing.T, d *daemon, p *nriPlugin) {
	t.Helper()
	pod, config := d.runPod("pod", nil)
	id := d.launch(pod, config, shell("adjusted", forever))
	expect(t, "environment and mount", d.execSync(id, "sh", "-c", "cat /plugin/file; tr '\\0' '\\n' < /proc/1/environ | grep FROM_PLUGIN"), "of the plugin\nFROM_PLUGIN=yes\n")
	status, err := d.ContainerStatus(d.call(), &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "limit in the status", status.Status.Resources.Linux.MemoryLimitInBytes, int64(64<<20))
	_, err = d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtime.LinuxContainerResources{CpuShares: 200}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "shares", d.status(id).Resources.Linux.CpuShares, int64(300))
	// What the plugin asks for by itself.
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	u.SetLinuxCPUShares(400)
	if failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{u}); err != nil || len(failed) > 0 {
		t.Errorf("an update by the plugin: %v, %v", failed, err)
	}
	expect(t, "shares", d.status(id).Resources.Linux.CpuShares, int64(400))
	if d.handler == "runc" {
		refused(t, "a size that the plugin refuses", d.resizePod(pod, 2<<40), codes.FailedPrecondition)
		if err := d.resizePod(pod, 256<<20); err != nil {
			t.Errorf("resize pod: %v", err)
		}
		expect(t, "what the plugin was told", fmt.Sprint(p.take()), "[run pod pod create adjusted created adjusted start adjusted started adjusted "+
			"update adjusted updated adjusted update to 2097152 MiB pod pod update to 256 MiB pod pod updated pod pod]")
		p.note("run pod pod create adjusted created adjusted start adjusted started adjusted update adjusted updated", "adjusted")
	}
	if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	expect(t, "what the plugin was told", fmt.Sprint(p.take()), "[run pod pod create adjusted created adjusted start adjusted started adjusted "+
		"update adjusted updated adjusted stop adjusted remove adjusted]")

	_, err = d.tryContainer(pod, "greedy")
	refused(t, "a namespace of a plugin's", err, codes.Unimplemented)
	id, err = d.tryContainer(pod, "hooked")
	if d.handler == "vm" {
		refused(t, "hooks in a VM", err, codes.Unimplemented)
	} else if err != nil {
		t.Errorf("hooks on the host: %v", err)
	}
	id, err = d.tryContainer(pod, "forbidden")
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: id})
	refused(t, "a start that the plugin refuses", err, codes.FailedPrecondition)
	expect(t, "its state", d.status(id).State, runtime.ContainerState_CONTAINER_EXITED)
	d.stopAndRemove(pod)
	if notes := p.take(); !slices.Contains(notes, "remove forbidden") || !slices.Contains(notes, "remove pod pod") {
		t.Errorf("the plugin was told: %v", notes)
	}
}
