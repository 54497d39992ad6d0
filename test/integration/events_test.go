package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listener follows the events of a daemon.
type listener struct {
	t      *testing.T
	stream runtime.RuntimeService_GetContainerEventsClient
}

// listen returns when no event is missed any more.
func (d *daemon) listen() listener {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d.t.Cleanup(cancel)
	stream, err := d.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return listener{d.t, stream}
}

// next is the next event as "type id pod's-state containers'-states-and-exit-codes", with ids by the names that they are given.
func (l listener) next(names map[string]string) string {
	l.t.Helper()
	e, err := l.stream.Recv()
	if err != nil {
		l.t.Fatal(err)
	}
	text := fmt.Sprint(e.ContainerEventType, " ", names[e.ContainerId], " ", e.PodSandboxStatus.GetState())
	for _, c := range e.ContainersStatuses {
		text += fmt.Sprint(" ", names[c.Id], ":", c.State, ":", c.ExitCode)
	}
	return text
}

// TestEvents: all that happens is told, in order, with the pod as it was then, also what happens while the daemon is down.
func TestEvents(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		names := map[string]string{}
		events := d.listen()
		pod, config := d.runPod("watched", nil)
		names[pod] = "pod"
		expect(t, "pod created", events.next(names), "CONTAINER_CREATED_EVENT pod SANDBOX_READY")
		expect(t, "pod started", events.next(names), "CONTAINER_STARTED_EVENT pod SANDBOX_READY")
		short := d.create(pod, config, shell("short", "exit 3"))
		names[short] = "short"
		d.startContainer(short)
		d.wait(short)
		if _, err := d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: short}); err != nil {
			t.Fatal(err)
		}
		// All of it is over; the events tell how it was.
		expect(t, "created", events.next(names), "CONTAINER_CREATED_EVENT short SANDBOX_READY short:CONTAINER_CREATED:0")
		expect(t, "started", events.next(names), "CONTAINER_STARTED_EVENT short SANDBOX_READY short:CONTAINER_RUNNING:0")
		expect(t, "stopped", events.next(names), "CONTAINER_STOPPED_EVENT short SANDBOX_READY short:CONTAINER_EXITED:3")
		expect(t, "deleted", events.next(names), "CONTAINER_DELETED_EVENT short SANDBOX_READY")
		long := d.launch(pod, config, shell("long", forever))
		names[long] = "long"
		expect(t, "created", events.next(names), "CONTAINER_CREATED_EVENT long SANDBOX_READY long:CONTAINER_CREATED:0")
		expect(t, "started", events.next(names), "CONTAINER_STARTED_EVENT long SANDBOX_READY long:CONTAINER_RUNNING:0")

		pid := d.pidOf(long)
		d.kill()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the container to end", func() bool { return unix.Kill(pid, 0) != nil })
		d.start()
		d.wait(long) // there is nobody to listen yet
		events = d.listen()
		expect(t, "stopped meanwhile", events.next(names), "CONTAINER_STOPPED_EVENT long SANDBOX_READY long:CONTAINER_EXITED:137")
		d.stopAndRemove(pod)
		expect(t, "pod stopped", events.next(names), "CONTAINER_STOPPED_EVENT pod SANDBOX_NOTREADY long:CONTAINER_EXITED:137")
		expect(t, "deleted", events.next(names), "CONTAINER_DELETED_EVENT long SANDBOX_NOTREADY")
		expect(t, "pod deleted", events.next(names), "CONTAINER_DELETED_EVENT pod SANDBOX_NOTREADY")
		d.nothing("after the events")
	})
}

// pidOf is the first process of a container on the host's kernel.
func (d *daemon) pidOf(id string) int {
	d.t.Helper()
	resp, err := d.ContainerStatus(d.call(), &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		d.t.Fatal(err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.PID == 0 {
		d.t.Fatalf("pid in %s: %v", resp.Info["info"], err)
	}
	return info.PID
}
