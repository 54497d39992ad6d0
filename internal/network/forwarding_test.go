package network

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// command runs a tool in the test's own namespace.
func command(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skipf("SKIPPED: this test needs the command %s", args[0])
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// TestForwardingBesideDocker has the FORWARD chains as Docker leaves them: nothing passes that no rule accepts.
func TestForwardingBesideDocker(t *testing.T) {
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) { testBesideDocker(t, "iptables-"+kind, "ip6tables-"+kind) })
	}
}

func testBesideDocker(t *testing.T, tools ...string) {
	opts := bridgeOptions(t)
	var said bytes.Buffer
	opts.Log = slog.New(slog.NewTextHandler(&said, nil))
	b := newBridge(t, opts)
	away := outside(t)
	serve(t, away, 80)
	for _, tool := range tools {
		if out, err := exec.Command(tool, "-S").CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: this kernel has no tables for %s: %s", tool, out)
		}
		command(t, tool+" -N DOCKER-USER")
		command(t, tool+" -A FORWARD -j DOCKER-USER")
		command(t, tool+" -P FORWARD DROP")
		t.Cleanup(func() {
			command(t, tool+" -P FORWARD ACCEPT")
			command(t, tool+" -F FORWARD")
			command(t, tool+" -X DOCKER-USER")
		})
	}
	pod, _ := setup(t, b, "pod", Port{HostPort: 8087, ContainerPort: 80})
	serve(t, pod.NetNS, 80)
	check := func(when string) {
		t.Helper()
		for _, c := range [][2]string{{pod.NetNS, "192.0.2.2:80"}, {pod.NetNS, "[2001:db8::2]:80"}, {away, "192.0.2.1:8087"}, {away, "[2001:db8::1]:8087"}} {
			if _, err := ask(c[0], "tcp", c[1]); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	check("beside Docker")
	for range 3 {
		must(t, b.Status())
	}
	// Tables that nobody has changed are not asked for by a tool again, whatever their rules have counted.
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	check("without tools")
	must(t, b.Status())
	t.Setenv("PATH", path)
	for _, tool := range tools {
		rules := command(t, tool+" -S FORWARD")
		if strings.Count(rules, opts.Name) < 2 || strings.Count(rules, "-j ACCEPT") != 2 {
			t.Errorf("the FORWARD chain of %s is\n%s", tool, rules)
		}
	}
	// Docker starts anew, or somebody flushes the chain.
	for _, tool := range tools {
		command(t, tool+" -F FORWARD")
	}
	for _, target := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} {
		if _, err := askWithin(pod.NetNS, "tcp", target, 300*time.Millisecond); err == nil {
			t.Errorf("the policy does not drop what goes to %s: the test shows nothing", target)
		}
	}
	must(t, b.Status())
	check("after a flush")
	must(t, b.Wipe(t.Context()))
	for _, tool := range tools {
		if rules := command(t, tool+" -S FORWARD"); strings.Contains(rules, opts.Name) {
			t.Errorf("left:\n%s", rules)
		}
	}
	if strings.Contains(said.String(), "level=WARN") {
		t.Errorf("the log says\n%s", said.String())
	}
}

func TestForwardingWarns(t *testing.T) {
	opts := bridgeOptions(t)
	var said bytes.Buffer
	opts.Log = slog.New(slog.NewTextHandler(&said, nil))
	b := newBridge(t, opts)
	command(t, "nft add table inet wall")
	t.Cleanup(func() { command(t, "nft delete table inet wall") })
	command(t, "nft add chain inet wall through { type filter hook forward priority 0 ; policy drop ; }")
	setup(t, b, "one")
	setup(t, b, "two")
	if strings.Count(said.String(), "wall through") != 1 {
		t.Errorf("the log says\n%s", said.String())
	}
}
