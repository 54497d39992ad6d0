// Package kvmprobe finds out whether guests run under KVM, by running one.
//
// It owns the file that keeps the answer. It knows VMMs as drivers only.
package kvmprobe

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
	// param on the kernel command line makes the guest's first process print answer to the console and power off.
	param  = "pistis.probe"
	answer = "pistis-probe-ok"

	// A guest whose console says nothing for maxSilence hangs. One that goes on is waited for: a host may be slow, and be
	// slow for a while; after maxBoot it is too slow to be of use.
	maxSilence = 15 * time.Second
	maxBoot    = 100 * time.Second
	memory     = 256 << 20
	fileName   = "kvm-probe.json"
	maxFile    = 64 << 10
)

// Config says what is booted, and by what.
type Config struct {
	Driver hypervisor.Driver
	// Binary is the VMM's path.
	Binary         string
	Kernel, Initrd string
	// Vmlinux is the kernel uncompressed, for a driver that boots nothing else.
	Vmlinux string
	// User that VMs will run as; nil is the caller's.
	User *hypervisor.User
	// CacheDir keeps the answer until the host reboots or what is probed changes.
	CacheDir string
}

// params make the guest talk from the beginning: its words are the sign that it goes on. All that a kernel can say would
// make its boot twice as long on a slow host: each character is an exit to the VMM.
var params = [...]string{param, "earlyprintk=ttyS0", "loglevel=6"}

// result is the cache's file.
type result struct {
	Key    key    `json:"key"`
	Usable bool   `json:"usable"`
	Reason string `json:"reason"`
}

// key is everything that the answer depends on.
type key struct {
	BootID  string           `json:"boot_id"`
	Driver  string           `json:"driver"`
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

// Run finds out whether guests run under KVM, by running one: that /dev/kvm opens says little, as on
// hosts where it is there and guests hang. reason says in a sentence why not, or how it was found out.
// The error is for what prevents an answer: no VMM, no guest, ctx ended.
func Run(ctx context.Context, cfg Config) (usable bool, reason string, err error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Sprintf("the host offers no KVM: %v", err), nil
	}
	f.Close()
	k, err := cfg.key(ctx)
	if err != nil {
		return false, "", fmt.Errorf("probe kvm: %w", err)
	}
	file := filepath.Join(cfg.CacheDir, fileName)
	if r, ok := readProbe(file); ok && r.Key.equal(k) {
		return r.Usable, r.Reason, nil
	}
	r := result{Key: k}
	if r.Usable, r.Reason, err = cfg.run(ctx); err != nil {
		return false, "", fmt.Errorf("probe kvm: %w", err)
	}
	if err := writeProbe(file, r); err != nil {
		return false, "", fmt.Errorf("probe kvm: keep the answer: %w", err)
	}
	return r.Usable, r.Reason, nil
}

func (k key) equal(other key) bool {
	a, errA := json.Marshal(k)
	b, errB := json.Marshal(other)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

func (cfg Config) key(ctx context.Context) (k key, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return k, err
	}
	k.BootID, k.Driver, k.User = string(bytes.TrimSpace(id)), cfg.Driver.Name(), cfg.User
	if k.Version, err = cfg.Driver.Version(ctx, cfg.Binary); err != nil {
		return k, err
	}
	for _, f := range []struct {
		path string
		id   *fileID
	}{{cfg.Binary, &k.Binary}, {cfg.Kernel, &k.Kernel}, {cfg.Initrd, &k.Initrd}} {
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
func (cfg Config) run(ctx context.Context) (usable bool, reason string, err error) {
	console := newNeedle(answer)
	began := time.Now()
	limit, cancel := context.WithTimeout(ctx, maxBoot)
	defer cancel()
	dir, err := cfg.runDir()
	if err != nil {
		return false, "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	kernel := cfg.Kernel
	if cfg.Driver.Capabilities().ELFKernel {
		kernel = cfg.Vmlinux
	}
	v, err := cfg.Driver.Start(limit, hypervisor.Config{
		ID: "kvm-probe", Binary: cfg.Binary, Accel: hypervisor.KVM, Kernel: kernel, Initrd: cfg.Initrd,
		Params: params[:], Size: hypervisor.Size{VCPUs: 1, Memory: memory}, Console: console, RunDir: dir, User: cfg.User,
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err != nil {
		return false, fmt.Sprintf("%s does not start with KVM: %v", cfg.Driver.Name(), err), nil
	}
	if v == nil {
		return false, "", err
	}
	if err == nil {
		reason, err = console.wait(ctx, v.Done())
	}
	if usable = err == nil && reason == ""; usable {
		reason = fmt.Sprintf("a guest of %s booted under KVM in %v", cfg.Driver.Name(), time.Since(began).Round(10*time.Millisecond))
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
		return false, "", fmt.Errorf("%s, process %d, does not die: %w", cfg.Driver.Name(), v.PID(), errdefs.ErrInternal)
	}
}

// runDir makes the VMM's directory.
func (cfg Config) runDir() (string, error) {
	dir, err := os.MkdirTemp("", "pistis-probe-") // short: it has sockets
	if err != nil || cfg.User == nil {
		return dir, err
	}
	if err := os.Chown(dir, int(cfg.User.UID), int(cfg.User.GID)); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	return dir, nil
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
	limit, silence := time.NewTimer(maxBoot), time.NewTimer(maxSilence)
	defer limit.Stop()
	defer silence.Stop()
	for {
		select {
		case <-n.found:
			return "", nil
		case <-ended:
			return guestEnded, nil
		case <-n.heard:
			silence.Reset(maxSilence)
		case <-silence.C:
			return fmt.Sprintf("/dev/kvm is there, but a guest hangs: its console was silent for %v", maxSilence), nil
		case <-limit.C:
			return fmt.Sprintf("/dev/kvm is there, but a guest was not up after %v", maxBoot), nil
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
func readProbe(file string) (r result, ok bool) {
	f, err := os.Open(file)
	if err != nil {
		return r, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	return r, err == nil && json.Unmarshal(data, &r) == nil
}

// writeProbe replaces the cache as a whole.
func writeProbe(file string, r result) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+fileName+"-")
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
