package network

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

var (
	testV4 = netip.MustParsePrefix("10.1.2.0/29")
	testV6 = netip.MustParsePrefix("fd00::/64")
)

func TestLedgerAllocates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.json")
	l, err := openLedger(path, "boot", testV4, testV6)
	must(t, err)
	given := map[netip.Addr]bool{}
	for i := range 5 {
		entry, err := l.reserve(fmt.Sprint(i), nil)
		must(t, err)
		for _, ip := range entry.ips() {
			if given[ip] || !testV4.Contains(ip) && !testV6.Contains(ip) {
				t.Errorf("address %s is given twice or from elsewhere", ip)
			}
			given[ip] = true
		}
		// Every step is on disk.
		l, err = openLedger(path, "boot", testV4, testV6)
		must(t, err)
	}
	for _, reserved := range []string{"10.1.2.0", "10.1.2.1", "10.1.2.7", "fd00::", "fd00::1"} {
		if given[netip.MustParseAddr(reserved)] {
			t.Errorf("%s was given to a pod", reserved)
		}
	}
	if _, err := l.reserve("5", nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a full ledger: %v", err)
	}
	freed := l.Pods["1"].IPv4
	must(t, l.release("1"))
	must(t, l.release("1"))
	entry, err := l.reserve("6", nil)
	if err != nil || entry.IPv4 != freed {
		t.Errorf("got %s, %v; want the address that became free", entry.IPv4, err)
	}
}

func TestLedgerIsOfOneBoot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.json")
	l, err := openLedger(path, "boot", testV4, testV6)
	must(t, err)
	_, err = l.reserve("pod", []hostPort{{Protocol: "tcp", HostPort: 80, ContainerPort: 80}})
	must(t, err)
	if l, err = openLedger(path, "next boot", testV4, testV6); err != nil || len(l.Pods) != 0 {
		t.Errorf("after a reboot: %d pods, %v", len(l.Pods), err)
	}
}

func TestLedgerUndoesWhatItCannotSave(t *testing.T) {
	dir := t.TempDir()
	l, err := openLedger(filepath.Join(dir, "gone", "ledger.json"), "boot", testV4, testV6)
	must(t, err)
	if _, err := l.reserve("pod", nil); err == nil || len(l.Pods) != 0 {
		t.Errorf("%d pods, %v", len(l.Pods), err)
	}
}

// TestLedgerFreesWhatItCannotSave: what was freed is free although the file is older, and an older file names no pod that
// came later.
func TestLedgerFreesWhatItCannotSave(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "there")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "ledger.json")
	l, err := openLedger(path, "boot", testV4, netip.Prefix{})
	must(t, err)
	for i := range 5 {
		_, err := l.reserve(fmt.Sprint(i), nil)
		must(t, err)
	}
	must(t, os.Rename(dir, dir+".away"))
	if err := l.release("1"); err == nil || len(l.Pods) != 4 {
		t.Errorf("%d pods, %v", len(l.Pods), err)
	}
	if _, err := l.reserve("later", nil); err == nil {
		t.Error("an address was given that the file says another pod has")
	}
	must(t, os.Rename(dir+".away", dir))
	old, err := openLedger(path, "boot", testV4, netip.Prefix{})
	if err != nil || len(old.Pods) != 5 {
		t.Fatalf("the older file has %d pods, %v", len(old.Pods), err)
	}
	if _, err := l.reserve("later", nil); err != nil {
		t.Error(err)
	}
}

func TestDecodeLedgerRefuses(t *testing.T) {
	const whole = `{"version":1,"boot":"b","ipv4":"10.1.2.0/29","ipv6":"","last":2,"pods":{"a":{"index":2,"ipv4":"10.1.2.2","ipv6":""},"b":{"index":3,"ipv4":"10.1.2.3","ipv6":""}}}`
	if _, err := decodeLedger([]byte(whole)); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"truncated":         whole[:len(whole)-5],
		"version":           strings.Replace(whole, `"version":1`, `"version":2`, 1),
		"double":            strings.Replace(whole, `"index":3,"ipv4":"10.1.2.3"`, `"index":2,"ipv4":"10.1.2.2"`, 1),
		"other address":     strings.Replace(whole, `"10.1.2.3"`, `"10.1.2.4"`, 1),
		"outside":           strings.Replace(whole, `"index":3`, `"index":300`, 1),
		"gateway":           strings.Replace(whole, `"index":3,"ipv4":"10.1.2.3"`, `"index":1,"ipv4":"10.1.2.1"`, 1),
		"families mixed up": strings.Replace(whole, `"ipv4":"10.1.2.0/29"`, `"ipv4":"fd00::/120"`, 1),
		"no prefix":         strings.Replace(whole, `"ipv4":"10.1.2.0/29"`, `"ipv4":""`, 1),
	} {
		if _, err := decodeLedger([]byte(data)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecodeLedger(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","ipv4":"10.1.2.0/29","ipv6":"fd00::/64","last":2,"pods":{"a":{"index":2,"ipv4":"10.1.2.2","ipv6":"fd00::2","ports":[{"protocol":"tcp","host_ip":"","host_port":1,"container_port":2}]}}}`))
	f.Add([]byte(`{"version":1,"ipv4":"::/0"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := decodeLedger(data)
		if err != nil {
			return
		}
		l := &ledger{filepath.Join(t.TempDir(), "ledger.json"), file}
		entry, err := l.reserve("a pod that is not there", nil)
		if err != nil {
			return
		}
		for _, p := range []netip.Prefix{file.IPv4, file.IPv6} {
			if p.IsValid() && !slices.ContainsFunc(entry.ips(), p.Contains) {
				t.Errorf("no address of %s in %v", p, entry.ips())
			}
		}
	})
}

func FuzzDecodeCNIRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"pod":{"ID":"a","Ports":[{"Protocol":"tcp","HostPort":1,"ContainerPort":2}]},"network":"n","cni_version":"1.0.0","bytes":{},"plugins":[{"type":"bridge"}]}`))
	f.Add([]byte(`{"version":1,"plugins":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := decodeCNIRecord(data); err == nil {
			if _, err := r.list(); err == nil {
				_, _ = runtimeConf(r.Pod)
			}
		}
	})
}

func FuzzReadConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","capabilities":{"portMappings":true}}]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","type":"bridge","ipam":{"type":"host-local"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		for _, name := range []string{"a.conf", "a.conflist"} {
			file := filepath.Join(dir, name)
			must(t, os.WriteFile(file, data, 0o600))
			if list, err := readConfig(file); err == nil {
				_ = pluginTypes(list)
				_ = supports(list, "portMappings")
				if r, err := newCNIRecord(Pod{ID: "a"}, list).list(); err != nil || len(r.Plugins) != len(list.Plugins) {
					t.Errorf("the record does not give the network back: %v", err)
				}
			}
		}
	})
}
