package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network/netns"
)

const (
	// statusTimeout bounds what plugins may take to say how they are.
	statusTimeout = 10 * time.Second
	// garbageTimeout bounds what they may take to free what is nobody's: pods wait for it.
	garbageTimeout = time.Minute
)

// ConfDirs are the directories of CNI configurations. An empty one is none.
type ConfDirs struct {
	Default string
	// Handlers are those of runtime handlers whose pods have a network of their own.
	Handlers map[string]string
}

// of is the directory for pods of a handler.
func (d ConfDirs) of(handler string) string {
	if own := d.Handlers[handler]; own != "" {
		return own
	}
	return d.Default
}

// all are the directories, each once.
func (d ConfDirs) all() []string {
	dirs := slices.Collect(maps.Values(d.Handlers))
	dirs = append(dirs, d.Default)
	slices.Sort(dirs)
	return slices.DeleteFunc(slices.Compact(dirs), func(dir string) bool { return dir == "" })
}

// CNI sets pods up with the plugins of the first usable configuration in a directory. The directory is read whenever
// a pod is set up and whenever the status is asked for, so that a change counts at once; a pod keeps the configuration
// that it was set up with.
type CNI struct {
	dirs    ConfDirs
	binDirs []string
	lib     *libcni.CNIConfig
	records cniRecords
	log     *slog.Logger

	// mu makes the check of host ports and the record that takes them one step, and guards noted.
	mu sync.Mutex
	// noted is what was last said in the log of the configuration of a directory.
	noted map[string]string
	// collecting is held by CollectGarbage alone: what is being set up is not garbage.
	collecting sync.RWMutex
	// patience is how long it holds it at most.
	patience time.Duration
}

// NewCNI returns the network that the configurations in the directories describe, which may come later. Plugins are looked
// up in binDirs; records of pods are kept below stateDir.
func NewCNI(dirs ConfDirs, binDirs []string, stateDir string) (*CNI, error) {
	if len(dirs.all()) == 0 || len(binDirs) == 0 || stateDir == "" {
		return nil, fmt.Errorf("CNI network: a configuration directory, plugin directories and a state directory are needed: %w", errdefs.ErrInvalidArgument)
	}
	records := filepath.Join(stateDir, "pods")
	if err := os.MkdirAll(records, 0o700); err != nil {
		return nil, fmt.Errorf("CNI network: %w", err)
	}
	return &CNI{
		dirs: dirs, noted: map[string]string{}, binDirs: binDirs, records: cniRecords(records), log: slog.Default(), patience: garbageTimeout,
		lib: libcni.NewCNIConfigWithCacheDir(binDirs, stateDir, nil),
	}, nil
}

// Configured says whether pods of a handler are CNI's: it has a directory of its own, or there is a configuration for all,
// usable or not.
func (c *CNI) Configured(handler string) bool {
	dir := c.dirs.of(handler)
	if dir == "" || dir != c.dirs.Default {
		return dir != ""
	}
	files, err := configFiles(dir)
	return err != nil || len(files) > 0
}

// config is the configuration of a directory that counts now.
func (c *CNI) config(dir string) (*libcni.NetworkConfigList, error) {
	list, skipped, err := loadConfig(dir)
	if err == nil {
		err = checkPlugins(list, c.binDirs)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := fmt.Sprint(string(list.Bytes), skipped); now != c.noted[dir] {
		c.noted[dir] = now
		c.log.Info("CNI network: "+list.Name+" by "+strings.Join(pluginTypes(list), ", "), logfields.Path, dir)
		if skipped != nil {
			c.log.Warn("CNI network: configurations are skipped", logfields.Error, skipped)
		}
	}
	return list, nil
}

// Setup implements Network.
func (c *CNI) Setup(ctx context.Context, pod Pod) (_ Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("set up CNI network: pod %s: %w", pod.ID, err)
		}
	}()
	if pod.ID == "" || strings.ContainsRune(pod.ID, '/') {
		return Result{}, fmt.Errorf("%q is not a pod ID: %w", pod.ID, errdefs.ErrInvalidArgument)
	}
	c.collecting.RLock()
	defer c.collecting.RUnlock()
	list, err := c.config(c.dirs.of(pod.Handler))
	if err != nil {
		return Result{}, err
	}
	conf, err := runtimeConf(pod)
	if err != nil {
		return Result{}, err
	}
	ns, err := netns.Open(pod.NetNS)
	if err != nil {
		return Result{}, err
	}
	ns.Close()
	c.warnUnsupported(list, conf, pod)
	if err := c.record(newCNIRecord(pod, list)); err != nil {
		return Result{}, err
	}
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	undo.Add("tear down", func(ctx context.Context) error { return c.Teardown(ctx, pod) })
	added, err := c.lib.AddNetworkList(ctx, list, conf)
	if err != nil {
		return Result{}, classify(ctx, err)
	}
	return toResult(added)
}

// record takes the pod's host ports and notes the pod, before anything is made for it.
func (c *CNI) record(r cniRecord) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.records.get(r.Pod.ID); !errdefs.IsNotFound(err) {
		if err != nil {
			return err
		}
		return fmt.Errorf("it has a network already: %w", errdefs.ErrAlreadyExists)
	}
	if len(r.Pod.Ports) > 0 {
		if err := c.portsFree(r.Pod); err != nil {
			return err
		}
	}
	return c.records.put(r)
}

// portsFree fails with ErrAlreadyExists when another pod has one of the pod's host ports. The caller holds mu.
func (c *CNI) portsFree(pod Pod) error {
	ports, err := checkPorts(pod.Ports)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := p.free(); err != nil {
			return err
		}
	}
	ids, err := c.records.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		other, err := c.records.get(id)
		if errdefs.IsNotFound(err) {
			continue // torn down meanwhile
		}
		if err != nil {
			return err
		}
		taken, err := checkPorts(other.Pod.Ports)
		if err != nil {
			return err
		}
		for _, p := range ports {
			for _, q := range taken {
				if p.overlaps(q) {
					return fmt.Errorf("host port %s is taken by pod %s: %w", p, id, errdefs.ErrAlreadyExists)
				}
			}
		}
	}
	return nil
}

// warnUnsupported says what no plugin takes. It cannot be an error: some networks learn of host ports and bandwidth
// limits from the Kubernetes API and do not declare the capability.
func (c *CNI) warnUnsupported(list *libcni.NetworkConfigList, conf *libcni.RuntimeConf, pod Pod) {
	for _, capability := range []string{"portMappings", "bandwidth"} {
		if _, asked := conf.CapabilityArgs[capability]; asked && !supports(list, capability) {
			c.log.Warn("CNI network: no plugin of "+list.Name+" has the capability "+capability+": it is up to the network whether the pod gets it",
				logfields.Sandbox, pod.ID, logfields.Pod, pod.Namespace+"/"+pod.Name)
		}
	}
}

// has says whether the pod has a record.
func (c *CNI) has(id string) bool {
	_, err := c.records.get(id)
	return !errdefs.IsNotFound(err)
}

// Teardown implements Network.
func (c *CNI) Teardown(ctx context.Context, pod Pod) error {
	if err := c.teardown(ctx, pod.ID); err != nil {
		return fmt.Errorf("tear down CNI network: pod %s: %w", pod.ID, err)
	}
	return nil
}

func (c *CNI) teardown(ctx context.Context, id string) error {
	record, list, conf, err := c.recorded(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	ns, err := netns.Open(record.Pod.NetNS)
	switch {
	case errdefs.IsNotFound(err):
		conf.NetNS = "" // the plugins free what lies outside of it
	case err != nil:
		return err
	default:
		ns.Close()
	}
	if err := c.lib.DelNetworkList(ctx, list, conf); err != nil {
		return classify(ctx, err)
	}
	return c.records.remove(id)
}

// recorded returns how a pod was set up.
func (c *CNI) recorded(id string) (cniRecord, *libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	record, err := c.records.get(id)
	if err != nil {
		return record, nil, nil, err
	}
	list, err := record.list()
	if err != nil {
		return record, nil, nil, err
	}
	conf, err := runtimeConf(record.Pod)
	return record, list, conf, err
}

// Check implements Network. It fails with ErrNotImplemented where the configuration is too old for it.
func (c *CNI) Check(ctx context.Context, pod Pod) error {
	_, list, conf, err := c.recorded(pod.ID)
	if err == nil {
		err = c.lib.CheckNetworkList(ctx, list, conf)
		if errors.Is(err, libcni.ErrorCheckNotSupp) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
		} else if err != nil {
			err = classify(ctx, err)
		}
	}
	if err != nil {
		return fmt.Errorf("check CNI network: pod %s: %w", pod.ID, err)
	}
	return nil
}

// Status implements Network. Plugins are asked too where they know the question (CNI 1.1).
func (c *CNI) Status() error { return c.StatusOf("") }

// StatusOf is the Status for pods of a handler.
func (c *CNI) StatusOf(handler string) error {
	list, err := c.config(c.dirs.of(handler))
	if err != nil {
		return fmt.Errorf("CNI network: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	if err := c.lib.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("CNI network: %s: %w: %w", list.Name, err, errdefs.ErrUnavailable)
	}
	return nil
}

// Reconcile implements Network.
func (c *CNI) Reconcile(ctx context.Context, keep map[string]bool) error {
	ids, err := c.records.ids()
	errs := []error{err}
	for _, id := range ids {
		if !keep[id] {
			errs = append(errs, c.Teardown(ctx, Pod{ID: id}))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reconcile CNI network: %w", err)
	}
	return nil
}

// CollectGarbage lets the plugins of the configurations (CNI 1.1) free everything that they keep for pods that have no
// record here. Where another runtime on this host uses the same network its pods would lose their addresses: its
// configuration must say disableGC then. Pods that are to be set up wait meanwhile, and no longer than a minute.
func (c *CNI) CollectGarbage(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	c.collecting.Lock()
	defer c.collecting.Unlock()
	ids, err := c.records.ids()
	if err != nil {
		return fmt.Errorf("collect garbage of CNI network: %w", err)
	}
	args := &libcni.GCArgs{}
	for _, id := range ids {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: interfaceName})
	}
	var errs []error
	for _, dir := range c.dirs.all() {
		list, err := c.config(dir)
		if errdefs.IsUnavailable(err) {
			continue // there is nothing yet
		}
		if err == nil {
			err = c.lib.GCNetworkList(ctx, list, args)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("collect garbage of CNI network: %s: %w", dir, classify(ctx, err)))
		}
	}
	return errors.Join(errs...)
}

// Close implements Network.
func (c *CNI) Close() error { return nil }

// classify gives a plugin's error the class that fits. An error that a canceled context caused is that.
func classify(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", err, ctx.Err())
	}
	var class error = errdefs.ErrInternal
	var plugin *types.Error
	if errors.As(err, &plugin) {
		switch plugin.Code {
		case types.ErrTryAgainLater, types.ErrPluginNotAvailable, types.ErrLimitedConnectivity:
			class = errdefs.ErrUnavailable
		case types.ErrInvalidNetworkConfig, types.ErrIncompatibleCNIVersion, types.ErrUnsupportedField:
			class = errdefs.ErrFailedPrecondition
		case types.ErrUnknownContainer:
			class = errdefs.ErrNotFound
		}
	}
	return fmt.Errorf("%w: %w", err, class)
}

// toResult keeps the addresses of the default interface, and DNS.
func toResult(added types.Result) (Result, error) {
	r, err := types100.NewResultFromResult(added)
	if err != nil {
		return Result{}, fmt.Errorf("understand what the plugins answered: %w: %w", err, errdefs.ErrInternal)
	}
	out := Result{DNSServers: r.DNS.Nameservers, DNSSearches: r.DNS.Search, DNSOptions: r.DNS.Options}
	if len(out.DNSSearches) == 0 && r.DNS.Domain != "" {
		out.DNSSearches = []string{r.DNS.Domain}
	}
	for _, ip := range r.IPs {
		if ip.Interface != nil {
			i := *ip.Interface
			if i < 0 || i >= len(r.Interfaces) {
				return Result{}, fmt.Errorf("understand what the plugins answered: address %s is of interface %d of %d: %w", ip.Address.String(), i, len(r.Interfaces), errdefs.ErrInternal)
			}
			if r.Interfaces[i].Sandbox == "" || r.Interfaces[i].Name != interfaceName {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return Result{}, fmt.Errorf("understand what the plugins answered: %q is not an address: %w", ip.Address.String(), errdefs.ErrInternal)
		}
		out.IPs = append(out.IPs, addr.Unmap())
	}
	return out, nil
}
