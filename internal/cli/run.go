package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
)

// logDirKey is the annotation by which a pod of `pistis run` names its log directory, which goes with the pod.
const logDirKey = "pistis.dev/log-directory"

// namespace of pods that are run by hand.
const namespace = "default"

// cleanupTimeout bounds what is done for a pod after its user has gone.
const cleanupTimeout = time.Minute

// exitTimeout bounds the time between the end of a container's streams and its exit.
const exitTimeout = 10 * time.Second

type runOptions struct {
	stdio
	name, handler, workdir, user, logDir string
	detach, keep, timing                 bool
	env, publish, labels                 []string
	memory, cpus                         string
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run an image as a pod with one container",
		Long: "Run pulls the image if it is not there, makes a pod with one container and shows its output; the exit code becomes ours.\n" +
			"The pod is removed when the command ends, unless --keep or -d is given.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), o, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	o.flags(cmd)
	f.StringVar(&o.name, "name", "", "the pod's name (default: made up)")
	f.StringVar(&o.handler, "handler", "", "runtime handler (default: the daemon's)")
	_ = cmd.RegisterFlagCompletionFunc("handler", a.offer(handlerNames))
	f.BoolVarP(&o.detach, "detach", "d", false, "print the pod's name and leave it running")
	f.BoolVar(&o.keep, "keep", false, "keep the pod after its container ended")
	f.Bool("rm", false, "remove the pod when its command ended, which is what happens anyway")
	cmd.MarkFlagsMutuallyExclusive("rm", "keep")
	cmd.MarkFlagsMutuallyExclusive("rm", "detach")
	f.BoolVar(&o.timing, "timing", false, "show how long each step took")
	f.StringArrayVarP(&o.env, "env", "e", nil, "KEY=value, or KEY to pass ours on")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "[host-ip:]host-port:port[/udp]")
	f.StringArrayVar(&o.labels, "label", nil, "key=value")
	f.StringVar(&o.memory, "memory", "", "memory limit, as 256Mi")
	f.StringVar(&o.cpus, "cpus", "", "CPU limit in cores, as 0.5")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory")
	f.StringVarP(&o.user, "user", "u", "", "user name or uid")
	f.StringVar(&o.logDir, "log-dir", "/var/log/pistis", "where the logs of such pods lie")
	return cmd
}

// run makes the pod, and takes it down again unless it is to stay.
func (a *app) run(ctx context.Context, o runOptions, image string, command []string) (err error) {
	if !o.detach {
		if err := a.streams("run without -d"); err != nil {
			return err
		}
	}
	podConfig, ctrConfig, err := o.configs(image, command)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	step := a.stopwatch(o.timing)

	if err := a.ensureImage(ctx, c, image); err != nil {
		return err
	}
	step("image")
	pod, err := c.RunPodSandbox(ctx, podConfig, o.handler)
	if err != nil {
		return err
	}
	step("pod")
	defer func() {
		var code exitError
		if (o.detach && err == nil) || (o.keep && ctx.Err() == nil && (err == nil || errors.As(err, &code))) {
			return
		}
		// The user's ^C ends the call, not the cleaning up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, c.removePod(ctx, pod))
	}()
	ctr, err := c.CreateContainer(ctx, pod, ctrConfig, podConfig)
	if err != nil {
		return err
	}
	step("container")
	if o.detach {
		if err := a.start(ctx, c, ctr); err != nil {
			return err
		}
		step("start")
		if a.output == "json" {
			return printValue(a.out, map[string]string{"name": podConfig.Metadata.Name, "pod": pod, "container": ctr})
		}
		fmt.Fprintln(a.out, podConfig.Metadata.Name)
		return nil
	}
	return a.foreground(ctx, c, ctr, o, step)
}

// foreground starts the container, shows its output until it ends and returns its exit code as an exitError.
func (a *app) foreground(ctx context.Context, c *client, ctr string, o runOptions, step func(string)) error {
	start := func() error {
		defer step("start")
		return a.start(ctx, c, ctr)
	}
	if o.interactive || o.tty {
		// Attached first, started then: nothing of the beginning is missed.
		streams, cancel := context.WithCancel(ctx)
		defer cancel()
		started := make(chan error, 1)
		err := a.attach(streams, c, ctr, o.stdio, func() {
			err := start()
			started <- err
			if err != nil {
				cancel() // there is nobody at the other end of the streams
			}
		})
		select {
		case startErr := <-started:
			err = cmp.Or(startErr, err)
		default:
		}
		if err != nil {
			return err
		}
	} else {
		if err := start(); err != nil {
			return err
		}
		if err := c.readLogs(ctx, ctr, &logs.LogOptions{Follow: true}, a.out, a.err); err != nil {
			return err
		}
	}
	s, err := c.awaitExit(ctx, ctr)
	if err != nil {
		return err
	}
	step("run")
	if s.ExitCode != 0 {
		if s.Message != "" {
			fmt.Fprintf(a.err, "%s: %s\n", s.Reason, s.Message)
		}
		return exitError(s.ExitCode)
	}
	return nil
}

// start starts a container. One whose command cannot be run has an exit code for that, which becomes ours.
func (a *app) start(ctx context.Context, c *client, id string) error {
	err := c.StartContainer(ctx, id)
	if err == nil {
		return nil
	}
	resp, statusErr := c.ContainerStatus(ctx, id, false)
	if statusErr != nil || resp.Status.State != runtime.ContainerState_CONTAINER_EXITED || resp.Status.ExitCode == 0 {
		return err
	}
	fmt.Fprintln(a.err, "pistis:", sentence(err))
	return exitError(resp.Status.ExitCode)
}

// awaitExit returns the status of a container whose streams have ended. Its exit is recorded a moment after its last
// output; CRI has no call that waits for it.
func (c *client) awaitExit(ctx context.Context, id string) (*runtime.ContainerStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, exitTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := c.ContainerStatus(ctx, id, false)
		if err != nil {
			return nil, err
		}
		if resp.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			return resp.Status, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.New("the container's streams ended, but it is still running")
		}
	}
}

// ensureImage pulls the image unless it is there.
func (a *app) ensureImage(ctx context.Context, c *client, image string) error {
	status, err := c.images.ImageStatus(ctx, &runtime.ImageSpec{Image: image}, false)
	if err != nil {
		return err
	}
	if status.Image != nil {
		return nil
	}
	_, err = a.pull(ctx, image, "")
	return err
}

// stopwatch prints the time since its last call, when it is on.
func (a *app) stopwatch(on bool) func(step string) {
	last := time.Now()
	return func(step string) {
		now := time.Now()
		if on {
			fmt.Fprintf(a.err, "%-10s %6d ms\n", step, now.Sub(last).Milliseconds())
		}
		last = now
	}
}

// removePod removes a pod, its containers, and the log directory if `pistis run` made it.
func (c *client) removePod(ctx context.Context, id string) error {
	status, err := c.PodSandboxStatus(ctx, id, false)
	if err != nil {
		return err
	}
	if err := c.StopPodSandbox(ctx, id); err != nil {
		return err
	}
	if err := c.RemovePodSandbox(ctx, id); err != nil {
		return err
	}
	if dir := status.Status.GetAnnotations()[logDirKey]; dir != "" {
		return os.RemoveAll(dir)
	}
	return nil
}

func (c *client) removeContainer(ctx context.Context, what string, force bool) error {
	ctr, err := c.container(ctx, what)
	if err != nil {
		return err
	}
	if ctr.State == runtime.ContainerState_CONTAINER_RUNNING && !force {
		return fmt.Errorf("container %s runs: stop it first, or use -f", what)
	}
	return c.RemoveContainer(ctx, ctr.Id)
}

// configs turns flags into CRI's words.
func (o runOptions) configs(image string, command []string) (*runtime.PodSandboxConfig, *runtime.ContainerConfig, error) {
	uid := uuid.NewString()
	name := o.name
	if name == "" {
		name = "pod-" + uid[:8]
	}
	labels, err := keyValues("label", o.labels)
	if err != nil {
		return nil, nil, err
	}
	ports, err := parsePorts(o.publish)
	if err != nil {
		return nil, nil, err
	}
	resources, err := o.resources()
	if err != nil {
		return nil, nil, err
	}
	// The kubelet's labels: other CRI clients show a pod's name by them.
	maps.Copy(labels, map[string]string{
		"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid,
	})
	ctrLabels := maps.Clone(labels)
	ctrLabels["io.kubernetes.container.name"] = name
	logDir := filepath.Join(o.logDir, name+"_"+uid)
	pod := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid},
		Hostname:     name,
		LogDirectory: logDir,
		Labels:       labels,
		Annotations:  map[string]string{logDirKey: logDir},
		PortMappings: ports,
		Linux: &runtime.LinuxPodSandboxConfig{
			Resources:       resources,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: ownPID()},
		},
	}
	security := &runtime.LinuxContainerSecurityContext{NamespaceOptions: ownPID()}
	if id, err := strconv.ParseInt(o.user, 10, 64); err == nil {
		security.RunAsUser = &runtime.Int64Value{Value: id}
	} else {
		security.RunAsUsername = o.user
	}
	ctr := &runtime.ContainerConfig{
		Metadata:   &runtime.ContainerMetadata{Name: name},
		Image:      &runtime.ImageSpec{Image: image},
		WorkingDir: o.workdir,
		LogPath:    "0.log",
		Labels:     ctrLabels,
		Stdin:      o.interactive,
		StdinOnce:  o.interactive,
		Tty:        o.tty,
		Linux:      &runtime.LinuxContainerConfig{SecurityContext: security, Resources: resources},
	}
	// As docker run: words after the image replace the image's command and keep its entrypoint.
	ctr.Args = command
	for _, e := range o.env {
		key, value, ok := strings.Cut(e, "=")
		if key == "" {
			return nil, nil, fmt.Errorf("environment %q: use KEY=value", e)
		}
		if !ok {
			if value, ok = os.LookupEnv(key); !ok {
				continue
			}
		}
		ctr.Envs = append(ctr.Envs, &runtime.KeyValue{Key: key, Value: []byte(value)})
	}
	return pod, ctr, nil
}

// ownPID gives the container a PID namespace of its own; CRI's default is one that the pod shares.
func ownPID() *runtime.NamespaceOption {
	return &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
}

func keyValues(what string, list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, kv := range list {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%s %q: use key=value", what, kv)
		}
		m[key] = value
	}
	return m, nil
}
