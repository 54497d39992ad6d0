package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

const (
	// ProbeParam on the kernel command line makes the guest's first process print ProbeAnswer to the console
	// and power off.
	ProbeParam  = "pistis.probe"
	ProbeAnswer = "pistis-probe-ok"

	// A guest whose console says nothing for probeSilence hangs. One that goes on is waited for: a host may be slow, and be
	// slow for a while; after probeLimit it is too slow to be of use.
	probeSilence = 15 * time.Second
	probeLimit   = 100 * time.Second
	probeMemory  = 256 << 20
	probeFile    = "kvm-probe.json"
	maxProbeFile = 64 << 10
)

// ProbeConfig says what ProbeKVM boots.
type ProbeConfig struct {
	// Binary is QEMU's path; empty looks on PATH.
	Binary         string
	Kernel, Initrd string
	// User that VMs will run as; nil is the caller's.
	User *hypervisor.User
	// CacheDir keeps the answer until the host reboots or what is probed changes.
	CacheDir string
}

// probeParams make the guest talk from the beginning: its words are the sign that it goes on. All that a kernel can say would
// make its boot twice as long on a slow host: each character is an exit to the VMM.
var probeParams = [...]string{ProbeParam, "earlyprintk=ttyS0", "loglevel=6"}

// probeResult is the cache's file.
type probeResult struct {
	Key    probeKey `json:"key"`
	Usable bool     `json:"usable"`
	Reason string   `json:"reason"`
}

// probeKey is everything that the answer depends on.
type probeKey struct {
	BootID  string           `json:"boot_id"`
	Version string           `json:"version"`
	Binary  fileID           `json:"binary"`
	Kernel  fileID           `json:"kernel"`
	Initrd  fileID           `json:"initrd"`
	User    *hypervisor.User `json:"user"`
}

// fileID tells whether a file is still the same.
type fileID struct {
	Path   string `json:"path"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size"`
	MTime  int64  `json:"mtime"`
}

// ProbeKVM finds out whether guests run under KVM, by running one: that /dev/kvm opens says little, as on
// hosts where it is there and guests hang. reason says in a sentence why not, or how it was found out.
// The error is for what prevents an answer: no QEMU, no guest, ctx ended.
func ProbeKVM(ctx context.Context, cfg ProbeConfig) (usable bool, reason string, err error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Sprintf("the host offers no KVM: %v", err), nil
	}
	f.Close()
	key, err := cfg.key(ctx)
	if err != nil {
		return false, "", fmt.Errorf("probe kvm: %w", err)
	}
	file := filepath.Join(cfg.CacheDir, probeFile)
	if r, ok := readProbe(file); ok && r.Key.equal(key) {
		return r.Usable, r.Reason, nil
	}
	r := probeResult{Key: key}
	if r.Usable, r.Reason, err = cfg.run(ctx); err != nil {
		return false, "", fmt.Errorf("probe kvm: %w", err)
	}
	if err := writeProbe(file, r); err != nil {
		return false, "", fmt.Errorf("probe kvm: keep the answer: %w", err)
	}
	return r.Usable, r.Reason, nil
}

func (k probeKey) equal(other probeKey) bool {
	a, errA := json.Marshal(k)
	b, errB := json.Marshal(other)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

func (cfg ProbeConfig) key(ctx context.Context) (k probeKey, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return k, err
	}
	k.BootID, k.User = string(bytes.TrimSpace(id)), cfg.User
	if k.Version, err = (Driver{}).Version(ctx, cfg.Binary); err != nil {
		return k, err
	}
	binary, err := program.Lookup(cfg.Binary)
	if err != nil {
		return k, err
	}
	for _, f := range []struct {
		path string
		id   *fileID
	}{{binary, &k.Binary}, {cfg.Kernel, &k.Kernel}, {cfg.Initrd, &k.Initrd}} {
		info, err := os.Stat(f.path)
		if err != nil {
			return k, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		stat := info.Sys().(*syscall.Stat_t)
		*f.id = fileID{Path: f.path, Device: stat.Dev, Inode: stat.Ino, Size: info.Size(), MTime: info.ModTime().UnixNano()}
	}
	return k, nil
}

// run boots the guest.
func (cfg ProbeConfig) run(ctx context.Context) (usable bool, reason string, err error) {
	console := newNeedle(ProbeAnswer)
	began := time.Now()
	limit, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	v, err := Driver{}.Start(limit, hypervisor.Config{
		ID: "kvm-probe", Binary: cfg.Binary, Accel: hypervisor.KVM, Kernel: cfg.Kernel, Initrd: cfg.Initrd,
		Params: probeParams[:], Size: hypervisor.Size{VCPUs: 1, Memory: probeMemory}, Console: console, User: cfg.User,
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err != nil {
		return false, fmt.Sprintf("QEMU does not start with KVM: %v", err), nil
	}
	if v == nil {
		return false, "", err
	}
	if err == nil {
		reason, err = console.wait(ctx, v.Done())
	}
	if usable = err == nil && reason == ""; usable {
		reason = fmt.Sprintf("a guest booted under KVM in %v", time.Since(began).Round(10*time.Millisecond))
	}
	if err := v.Kill(); err != nil {
		return false, "", err
	}
	select {
	case <-v.Done():
		if err == nil && reason == guestEnded {
			reason = fmt.Sprintf("%s: %v", guestEnded, v.Err())
		}
		return usable, reason, err
	case <-time.After(hypervisor.ControlTimeout):
		return false, "", fmt.Errorf("QEMU, process %d, does not die: %w", v.PID(), errdefs.ErrInternal)
	}
}

// needle is a console on which one word is looked for.
type needle struct {
	want  []byte
	mu    sync.Mutex
	last  []byte
	once  sync.Once
	found chan struct{}
	// heard has a token when something was written.
	heard chan struct{}
}

func newNeedle(word string) *needle {
	return &needle{want: []byte(word), found: make(chan struct{}), heard: make(chan struct{}, 1)}
}

const guestEnded = "a guest under KVM ended before it was up"

// wait returns an empty reason when the word was found, and otherwise why it is no longer waited for. ended is closed with
// the guest's end.
func (n *needle) wait(ctx context.Context, ended <-chan struct{}) (reason string, err error) {
	limit, silence := time.NewTimer(probeLimit), time.NewTimer(probeSilence)
	defer limit.Stop()
	defer silence.Stop()
	for {
		select {
		case <-n.found:
			return "", nil
		case <-ended:
			return guestEnded, nil
		case <-n.heard:
			silence.Reset(probeSilence)
		case <-silence.C:
			return fmt.Sprintf("/dev/kvm is there, but a guest hangs: its console was silent for %v", probeSilence), nil
		case <-limit.C:
			return fmt.Sprintf("/dev/kvm is there, but a guest was not up after %v", probeLimit), nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

func (n *needle) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case n.heard <- struct{}{}:
	default:
	}
	n.last = append(n.last, p...)
	if bytes.Contains(n.last, n.want) {
		n.once.Do(func() { close(n.found) })
	}
	if drop := len(n.last) - len(n.want); drop > 0 {
		n.last = append(n.last[:0], n.last[drop:]...)
	}
	return len(p), nil
}

// readProbe reads the cache. A file that is missing or damaged is no answer.
func readProbe(file string) (r probeResult, ok bool) {
	f, err := os.Open(file)
	if err != nil {
		return r, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProbeFile))
	return r, err == nil && json.Unmarshal(data, &r) == nil
}

// writeProbe replaces the cache as a whole.
func writeProbe(file string, r probeResult) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+probeFile+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
