package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/network/netns"
)

// dockerDir has dockerd with what it calls; empty where it is on PATH.
func dockerDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("PISTIS_DOCKER")
	if _, err := os.Stat(filepath.Join(dir, "dockerd")); dir != "" && err == nil {
		return dir
	}
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Skip("SKIPPED, not tested: life beside Docker: there is no dockerd on PATH nor where PISTIS_DOCKER says; test/peers/docker.sh unpacks one")
	}
	return ""
}

// apart has a test run once more, in network, mount and process namespaces of its own, which end with it. It is true in there.
func apart(t *testing.T) bool {
	t.Helper()
	const inside = "PISTIS_TEST_APART"
	if os.Getenv(inside) != "" {
		return true
	}
	registry(t) // its images are made with the network of outside
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("in namespaces of its own: %v", err)
	}
	return false
}

// run runs a command that has to succeed.
func run(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// Another host: its namespace, and the addresses of both on the cable between them.
const (
	away         = "/run/netns/away"
	away4, away6 = "192.0.2.2", "2001:db8::2"
	node4, node6 = "192.0.2.1", "2001:db8::1"
	hostPort     = 8087
	outsideSays  = "outside\n"
)

// page is a command that gets a page, in a container.
func page(address string) []string {
	return []string{"timeout", "10", "wget", "-q", "-O", "-", "http://" + address + "/"}
}

// otherHost makes it, with a server.
func otherHost(t *testing.T) {
	t.Helper()
	for _, line := range []string{
		"mkdir -p /run/netns", "mount -t tmpfs tmpfs /run/netns", "ip link set lo up", "ip netns add away", "ip link add cable type veth peer name eth0 netns away",
		"ip addr add " + node4 + "/24 dev cable", "ip addr add " + node6 + "/64 dev cable nodad", "ip link set cable up",
		"ip -n away addr add " + away4 + "/24 dev eth0", "ip -n away addr add " + away6 + "/64 dev eth0 nodad",
		"ip -n away link set eth0 up", "ip -n away link set lo up",
	} {
		run(t, line)
	}
	var l net.Listener
	err := netns.Do(away, func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, outsideSays) })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

// askFromAway gets a page as the other host.
func askFromAway(address string) (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = netns.Do(away, func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}}
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// docker is a Docker Engine, in the test's own namespaces.
type docker struct {
	t    *testing.T
	dir  string // of its programs
	work string
	cmd  *exec.Cmd
	done chan error
	http *http.Client
}

func newDocker(t *testing.T, dir string) *docker {
	work, err := os.MkdirTemp("/run", "pd-") // for sockets, which have short names
	if err != nil {
		t.Fatal(err)
	}
	e := &docker{t: t, dir: dir, work: work, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", work+"/docker.sock")
		},
	}}}
	t.Cleanup(func() {
		if e.cmd != nil {
			e.stop()
		}
		// Its mounts go with the namespace; what it made of cgroups does not.
		groups, _ := filepath.Glob("/sys/fs/cgroup/*" + e.cgroup())
		for _, group := range append(groups, "/sys/fs/cgroup"+e.cgroup()) {
			if err := os.Remove(group); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
		_ = unix.Unmount(work+"/docker/netns/default", unix.MNT_DETACH) // it is there where a container was run
		if err := os.RemoveAll(work); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *docker) cgroup() string { return "/" + filepath.Base(e.work) }

// start returns when it answers.
func (e *docker) start() {
	e.t.Helper()
	program := "dockerd"
	env := os.Environ()
	if e.dir != "" {
		program = filepath.Join(e.dir, program)
		env = append(env, "PATH="+e.dir+":"+os.Getenv("PATH"))
	}
	e.cmd = exec.Command(program, "--data-root", e.work+"/data", "--exec-root", e.work+"/docker", "--pidfile", e.work+"/pid",
		"--host", "unix://"+e.work+"/docker.sock", "--cgroup-parent", e.cgroup(), "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--storage-driver", "vfs", "--experimental", "--ip6tables", "--ipv6", "--fixed-cidr-v6", "fd00:d0c::/64")
	log, err := os.OpenFile(e.work+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	e.cmd.Stdout, e.cmd.Stderr, e.cmd.Env = log, log, env
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.done = make(chan error, 1)
	go func(cmd *exec.Cmd) { e.done <- cmd.Wait() }(e.cmd)
	eventually(e.t, "an answer from dockerd", func() bool {
		select {
		case err := <-e.done:
			text, _ := os.ReadFile(e.work + "/log")
			e.t.Fatalf("dockerd ended: %v\n%s", err, text)
		default:
		}
		_, err := e.call(http.MethodGet, "/_ping", nil, nil)
		return err == nil
	})
}

func (e *docker) stop() {
	e.t.Helper()
	if err := e.cmd.Process.Signal(unix.SIGTERM); err != nil {
		e.t.Error(err)
	}
	if err := <-e.done; err != nil {
		e.t.Errorf("dockerd ended with %v", err)
	}
	e.cmd = nil
}

// call makes one call of its API.
func (e *docker) call(method, path string, body io.Reader, into any) ([]byte, error) {
	req, err := http.NewRequestWithContext(e.t.Context(), method, "http://docker"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, data)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(data, into)
	}
	return data, err
}

// load gives it an image that pistisd has.
func (e *docker) load(d *daemon, image string) {
	e.t.Helper()
	file := e.work + "/image.tar"
	if _, stderr, code := d.pistis("export", "-f", file, image); code != 0 {
		e.t.Fatalf("export: %s", stderr)
	}
	archive, err := os.Open(file)
	if err != nil {
		e.t.Fatal(err)
	}
	defer archive.Close()
	if _, err := e.call(http.MethodPost, "/images/load?quiet=1", archive, nil); err != nil {
		e.t.Fatal(err)
	}
}

// run runs a command in a container and returns what it says.
func (e *docker) run(image string, command ...string) string {
	e.t.Helper()
	config, err := json.Marshal(map[string]any{"Image": image, "Cmd": command, "Tty": true})
	if err != nil {
		e.t.Fatal(err)
	}
	var made struct{ ID string }
	_, err = e.call(http.MethodPost, "/containers/create", bytes.NewReader(config), &made)
	if err == nil {
		_, err = e.call(http.MethodPost, "/containers/"+made.ID+"/start", nil, nil)
	}
	if err == nil {
		_, err = e.call(http.MethodPost, "/containers/"+made.ID+"/wait", nil, nil)
	}
	if err != nil {
		e.t.Fatal(err)
	}
	out, err := e.call(http.MethodGet, "/containers/"+made.ID+"/logs?stdout=1&stderr=1", nil, nil)
	if err == nil {
		_, err = e.call(http.MethodDelete, "/containers/"+made.ID+"?force=1", nil, nil)
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return strings.ReplaceAll(string(out), "\r", "")
}

// TestBesideDocker: pods and Docker's containers reach whom they should, on one host and however often Docker, which lets
// nothing be forwarded that it does not know, starts anew.
func TestBesideDocker(t *testing.T) {
	needs(t)
	dir := dockerDir(t)
	if !apart(t) {
		return
	}
	otherHost(t)
	d := startDaemon(t, "")
	d.handler = "runc"
	if reason := notReady(d, "runc"); reason != "" {
		t.Skipf("SKIPPED, not tested: handler runc: %s", reason)
	}
	d.pull(testImage)
	web := func(name string, port int32) (pod, container string) {
		pod, config := d.runPod(name, func(c *runtime.PodSandboxConfig) {
			if port != 0 {
				c.PortMappings = []*runtime.PortMapping{{Protocol: runtime.Protocol_TCP, ContainerPort: 8080, HostPort: port}}
			}
		})
		return pod, d.launch(pod, config, shell("web", "mkdir /tmp/www; hostname > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"))
	}
	server, _ := web("server", hostPort)
	_, client := web("client", 0)
	addresses := func(pod string) []string {
		resp, err := d.PodSandboxStatus(d.call(), &runtime.PodSandboxStatusRequest{PodSandboxId: pod})
		if err != nil {
			t.Fatal(err)
		}
		list := []string{resp.Status.Network.Ip}
		for _, more := range resp.Status.Network.AdditionalIps {
			list = append(list, more.Ip)
		}
		if len(list) != 2 {
			t.Fatalf("the pod has the addresses %q", list)
		}
		return list
	}
	served := addresses(server)
	check := func(when string) {
		t.Helper()
		for _, ip := range served {
			expect(t, when+": a pod's answer to a pod at "+ip, d.execSync(client, page(net.JoinHostPort(ip, "8080"))...), "server\n")
		}
		for _, ip := range []string{away4, away6} {
			expect(t, when+": the answer of "+ip+" outside to a pod", d.execSync(client, page(net.JoinHostPort(ip, "80"))...), outsideSays)
		}
		for _, ip := range []string{node4, node6} {
			body, err := askFromAway(net.JoinHostPort(ip, fmt.Sprint(hostPort)))
			if err != nil {
				t.Errorf("%s: the host port at %s from outside: %v", when, ip, err)
			}
			expect(t, when+": the answer at the host port", body, "server\n")
		}
	}
	// The kubelet asks for it every few seconds, and with that the node's network is looked after.
	status := func() {
		t.Helper()
		if _, err := d.Status(d.call(), &runtime.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	ofDocker := func(when string, e *docker) {
		t.Helper()
		for _, tool := range []string{"iptables", "ip6tables"} {
			if rules := run(t, tool+" -S FORWARD"); !strings.Contains(rules, "-P FORWARD DROP") || !strings.Contains(rules, "docker0") {
				t.Errorf("%s: this Docker does not do what the test is about: %s says %s", when, tool, rules)
			}
		}
		expect(t, when+": the answer of outside to Docker's container", e.run(testImage, page(away4)...), outsideSays)
	}
	check("before Docker")
	e := newDocker(t, dir)
	// Where Docker is it that switches forwarding on, as on a host where it starts first, it lets nothing else be forwarded.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.start()
	status()
	e.load(d, testImage)
	ofDocker("beside Docker", e)
	check("beside Docker")
	_, late := web("late", 0)
	expect(t, "a pod that came after Docker", d.execSync(late, page(net.JoinHostPort(served[0], "8080"))...), "server\n")
	e.stop()
	check("while Docker is away")
	e.start()
	status()
	ofDocker("after Docker's restart", e)
	check("after Docker's restart")
	e.stop()
	check("after Docker")
}
