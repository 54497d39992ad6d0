package network

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// configFiles lists the CNI configurations of a directory in the order in which they count.
func configFiles(dir string) ([]string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, fmt.Errorf("list CNI configurations: %w", err)
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	return files, nil
}

// loadConfig returns the first usable configuration of the directory. Without a file it fails with ErrUnavailable,
// with unusable ones only with ErrFailedPrecondition; skipped says what is wrong with those before the one returned.
func loadConfig(dir string) (list *libcni.NetworkConfigList, skipped error, err error) {
	files, err := configFiles(dir)
	if err != nil {
		return nil, nil, err
	}
	if len(files) == 0 {
		return nil, nil, fmt.Errorf("no CNI configuration in %s: install a network plugin: %w", dir, errdefs.ErrUnavailable)
	}
	var errs []error
	for _, file := range files {
		list, err := readConfig(file)
		if err == nil {
			return list, errors.Join(errs...), nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", file, err))
	}
	return nil, nil, fmt.Errorf("no usable CNI configuration: %w: %w", errors.Join(errs...), errdefs.ErrFailedPrecondition)
}

func readConfig(file string) (*libcni.NetworkConfigList, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxConfig)
	}
	if filepath.Ext(file) == ".conflist" {
		list, err := libcni.NetworkConfFromFile(file)
		if err != nil {
			return nil, err
		}
		return list, checkConfig(list)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parsePlugin(data)
}

// parsePlugin reads a configuration of a single plugin, as a list of one.
func parsePlugin(data []byte) (*libcni.NetworkConfigList, error) {
	plugin, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	list := &libcni.NetworkConfigList{Name: plugin.Network.Name, CNIVersion: plugin.Network.CNIVersion, Plugins: []*libcni.PluginConfig{plugin}, Bytes: data}
	return list, checkConfig(list)
}

func checkConfig(list *libcni.NetworkConfigList) error {
	if list.Name == "" || strings.ContainsRune(list.Name, '/') {
		return fmt.Errorf("%q is not a network name", list.Name)
	}
	if list.CNIVersion == "" {
		list.CNIVersion = "0.1.0" // what the specification says
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
	}
	if newer {
		return fmt.Errorf("cniVersion %s is newer than %s, the newest known", list.CNIVersion, version.Current())
	}
	return nil
}

// checkPlugins says which plugin binaries are missing.
func checkPlugins(list *libcni.NetworkConfigList, dirs []string) error {
	for _, name := range pluginTypes(list) {
		if _, err := invoke.FindInPath(name, dirs); err != nil {
			return fmt.Errorf("network %s: the plugin %s is not in %s: install it there or configure the directory that has it: %w",
				list.Name, name, strings.Join(dirs, ", "), errdefs.ErrUnavailable)
		}
	}
	return nil
}

// pluginTypes names the binaries that a network needs, those for addresses too.
func pluginTypes(list *libcni.NetworkConfigList) []string {
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
		if p.Network.IPAM.Type != "" {
			types = append(types, p.Network.IPAM.Type)
		}
	}
	return types
}

// supports says whether some plugin of the network takes the capability.
func supports(list *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}
