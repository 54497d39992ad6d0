package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// httpGet asks until the server answers.
func httpGet(t *testing.T, address string) string {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	var body []byte
	eventually(t, "an answer from "+address, func() bool {
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	return string(body)
}

// TestNetwork: host to pod, container to container, pod to pod, both pods to the host, by IPv4 and IPv6; host ports; names
// and hosts files.
func TestNetwork(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	port := freeAddress(t)
	_, hostPort, _ := net.SplitHostPort(port)
	server, config := d.runPod("server", func(c *runtime.PodSandboxConfig) {
		var n int32
		fmt.Sscan(hostPort, &n)
		c.PortMappings = []*runtime.PortMapping{{Protocol: runtime.Protocol_TCP, ContainerPort: 8080, HostPort: n}}
		c.DnsConfig = &runtime.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"pods.test"}, Options: []string{"ndots:5"}}
	})
	d.launch(server, config, shell("web", "mkdir /tmp/www; hostname > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"))
	ip := d.ip(server)
	expect(t, "answer to the host", httpGet(t, net.JoinHostPort(ip, "8080")), "server\n")
	expect(t, "answer at the host port", httpGet(t, port), "server\n")

	// A server on the host, reached from the pods by the bridge's address: the pod's gateway.
	gateway := strings.TrimSpace(d.run(server, config, shell("route", "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")))
	listener, err := net.Listen("tcp", net.JoinHostPort(gateway, "0"))
	if err != nil {
		t.Fatal(err)
	}
	host := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the host") })}
	go func() { _ = host.Serve(listener) }()
	t.Cleanup(func() { _ = host.Shutdown(context.Background()) })

	client, clientConfig := d.runPod("client", nil)
	ip6 := ""
	status, err := d.PodSandboxStatus(d.call(), &runtime.PodSandboxStatusRequest{PodSandboxId: server})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range status.Status.GetNetwork().GetAdditionalIps() {
		if strings.Contains(a.Ip, ":") {
			ip6 = a.Ip
		}
	}
	if ip6 == "" {
		t.Fatal("the pod has no IPv6 address")
	}
	askHost := "wget -q -O - http://" + listener.Addr().String() + "/"
	out := d.run(client, clientConfig, shell("asks", script(
		"wget -q -O - http://"+net.JoinHostPort(ip, "8080")+"/",
		"wget -q -O - 'http://"+net.JoinHostPort(ip6, "8080")+"/'",
		askHost,
	)))
	expect(t, "what the client pod got", out, "server\nserver\nthe host\n")
	// The two containers of the first pod share its localhost.
	out = d.run(server, config, shell("neighbour", script("wget -q -O - http://localhost:8080/", askHost)))
	expect(t, "what the server's neighbour got", out, "server\nthe host\n")

	files := d.run(server, config, shell("files", "cat /etc/resolv.conf; cat /etc/hosts; cat /etc/hostname"))
	for _, want := range []string{"nameserver 192.0.2.53", "search pods.test", "options ndots:5", "127.0.0.1", ip + "\tserver", "\nserver\n"} {
		if !strings.Contains(files, want) {
			t.Errorf("the pod's files lack %q:\n%s", want, files)
		}
	}
}
