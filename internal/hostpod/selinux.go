package hostpod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/oci"
)

// labelsFile keeps a pod's labels in its directory.
const labelsFile = "selinux"

// labels are what SELinux knows processes, and the files that are theirs, by. Empty ones are the policy's business.
type labels struct{ process, files string }

// labeller is the host's SELinux.
type labeller interface {
	// fresh makes labels with categories that nobody else has, and changes them as the options say: type:…, level:…
	fresh(options []string) (labels, error)
	// reserve keeps the categories of a label from others until they are released.
	reserve(process string)
	release(process string)
	// check asks the kernel whether its policy knows the label.
	check(label string) error
	// relabel labels a file, or a directory and all that is below it.
	relabel(path, label string) error
}

// hostLabeller is nil where SELinux is off. Labels are ignored there as every runtime does: the kubelet sends what the pod
// says, to nodes with and without SELinux.
func hostLabeller() labeller {
	if !selinux.GetEnabled() {
		return nil
	}
	return kernelLabeller{}
}

type kernelLabeller struct{}

func (kernelLabeller) fresh(options []string) (labels, error) {
	process, files, err := label.InitLabels(options)
	return labels{process, files}, err
}

func (kernelLabeller) reserve(process string)           { selinux.ReserveLabel(process) }
func (kernelLabeller) release(process string)           { selinux.ReleaseLabel(process) }
func (kernelLabeller) check(label string) error         { return selinux.SecurityCheckContext(label) }
func (kernelLabeller) relabel(path, files string) error { return label.Relabel(path, files, false) }

// ImageLabel is the label of files that containers of all pods may read; empty where SELinux is off.
func ImageLabel() string {
	if !selinux.GetEnabled() {
		return ""
	}
	// It is known once labels were made.
	if process, _, err := label.InitLabels(nil); err == nil {
		selinux.ReleaseLabel(process)
	}
	return selinux.ROFileLabel()
}

// options of a label that is user:role:type:level, of which each may be empty.
func options(label string) []string {
	var set []string
	parts := strings.SplitN(label, ":", 4)
	for i, name := range []string{"user", "role", "type", "level"} {
		if i < len(parts) && parts[i] != "" {
			set = append(set, name+":"+parts[i])
		}
	}
	return set
}

// labelPod gives a new pod its labels. Its containers have the same, so that they share volumes.
func (l *Launcher) labelPod(p pod) error {
	if l.labels == nil {
		return nil
	}
	wanted := options(p.cfg.SELinuxLabel)
	made, err := l.labels.fresh(wanted)
	if err != nil {
		return fmt.Errorf("SELinux options %q: %w: %w", p.cfg.SELinuxLabel, err, errdefs.ErrInvalidArgument)
	}
	if made.process == "" && len(wanted) > 0 {
		return noContexts(p.cfg.SELinuxLabel)
	}
	if err := p.writeFile(labelsFile, []byte(made.process+"\n"+made.files)); err != nil {
		l.labels.release(made.process)
		return err
	}
	return nil
}

func noContexts(label string) error {
	return fmt.Errorf("SELinux options %q: the host's policy has no contexts for containers; install its package container-selinux: %w", label, errdefs.ErrFailedPrecondition)
}

// labels of a pod, empty where it has none.
func (p pod) labels() (labels, error) {
	data, err := os.ReadFile(p.file(labelsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return labels{}, nil
	} else if err != nil {
		return labels{}, fmt.Errorf("SELinux labels: %w", err)
	}
	process, files, _ := strings.Cut(string(data), "\n")
	return labels{process, files}, nil
}

// reserveLabels keeps those of a pod that was there before this daemon.
func (l *Launcher) reserveLabels(p pod) error {
	own, err := p.labels()
	if err == nil && l.labels != nil && own.process != "" {
		l.labels.reserve(own.process)
	}
	return err
}

func (l *Launcher) releaseLabels(own labels) {
	if l.labels != nil && own.process != "" {
		l.labels.release(own.process)
	}
}

// labelShared labels what the pod gives to all of its containers.
func (l *Launcher) labelShared(p pod) error {
	own, err := p.labels()
	if err != nil || l.labels == nil || own.files == "" {
		return err
	}
	paths := []string{p.file("hosts"), p.file("resolv.conf"), p.file("hostname")}
	if !p.cfg.HostIPC {
		paths = append(paths, p.shm())
	}
	return l.relabel(paths, own.files)
}

// relabel leaves what is on file systems without labels as it is.
func (l *Launcher) relabel(paths []string, files string) error {
	if l.labels == nil || files == "" {
		return nil
	}
	for _, path := range paths {
		if err := l.labels.relabel(path, files); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("SELinux: label %s as %s: %w: %w", path, files, err, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// labelsOf are a container's: its pod's, with what the container names itself.
func (l *Launcher) labelsOf(p pod, wanted string) (labels, error) {
	if l.labels == nil {
		return labels{}, nil
	}
	own, err := p.labels()
	switch {
	case err != nil, wanted == "":
		return own, err
	case wanted == oci.SELinuxUnconfined:
		return labels{files: own.files}, nil
	case own.process == "":
		return labels{}, noContexts(wanted)
	}
	own = own.with(wanted)
	if err := l.labels.check(own.process); err != nil {
		return labels{}, fmt.Errorf("SELinux label %q: %w: %w", own.process, err, errdefs.ErrInvalidArgument)
	}
	return own, nil
}

// with replaces the parts of a label that are set in another; files follow in what says whose they are.
func (l labels) with(wanted string) labels {
	replace := func(label string, which ...int) string {
		parts, own := strings.SplitN(label, ":", 4), strings.SplitN(wanted, ":", 4)
		for _, i := range which {
			if i < len(parts) && i < len(own) && own[i] != "" {
				parts[i] = own[i]
			}
		}
		return strings.Join(parts, ":")
	}
	return labels{process: replace(l.process, 0, 1, 2, 3), files: replace(l.files, 0, 3)}
}

// set puts the labels into a spec.
func (l labels) set(spec *specs.Spec) {
	spec.Process.SelinuxLabel, spec.Linux.MountLabel = l.process, l.files
}
