package debian

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Options for Open.
type Options struct {
	// Dir keeps the private apt's state; it is made when missing. It stays the caller's.
	Dir string
	// Sources is the directory that holds sources.list, sources.list.d and what they refer to.
	// Empty means /etc/apt.
	Sources string
	// Progress, where set, is called with a line for every step that takes time.
	Progress func(string)
}

// Archive is a private view of the machine's package sources.
type Archive struct {
	dir      string
	progress func(string)
	updated  bool
	// unreachable is why some sources could not be asked.
	unreachable error
}

// Package is one version of a package.
type Package struct {
	Name, Version, Architecture string
	// Depends names the packages it needs: of alternatives the first, without versions.
	Depends []string
}

// Open prepares a private apt below o.Dir. NotFound when the machine has no apt or no package sources.
func Open(o Options) (*Archive, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, fmt.Errorf("debian packages: this machine has no apt-get: %w", errdefs.ErrNotFound)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("debian packages: %w", err)
	}
	if o.Sources == "" {
		o.Sources = "/etc/apt"
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	a := &Archive{dir: dir, progress: o.Progress}
	if err := os.RemoveAll(a.path("etc")); err != nil {
		return nil, fmt.Errorf("debian packages: %w", err)
	}
	for _, sub := range []string{"etc/sources.list.d", "etc/apt.conf.d", "state/lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(a.path(sub), 0o755); err != nil {
			return nil, fmt.Errorf("debian packages: %w", err)
		}
	}
	n, err := a.copyFiles(o.Sources, "sources.list", "sources.list.d/*.sources", "sources.list.d/*.list")
	if err != nil {
		return nil, fmt.Errorf("debian packages: copy package sources: %w", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("debian packages: %s has no sources.list and no sources.list.d/*.sources or *.list: %w", o.Sources, errdefs.ErrNotFound)
	}
	// The machine's configuration carries its proxies, so it is copied too; ours comes last and wins.
	if _, err := a.copyFiles(o.Sources, "apt.conf", "apt.conf.d/*"); err != nil {
		return nil, fmt.Errorf("debian packages: copy apt's configuration: %w", err)
	}
	if err := a.configure(o.Sources); err != nil {
		return nil, fmt.Errorf("debian packages: %w", err)
	}
	return a, nil
}

func (a *Archive) path(name string) string { return filepath.Join(a.dir, name) }

// copyFiles copies the files that match the patterns to the same place below etc, and counts them.
func (a *Archive) copyFiles(from string, patterns ...string) (int, error) {
	n := 0
	for _, pattern := range patterns {
		found, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			return 0, err
		}
		for _, f := range found {
			if info, err := os.Stat(f); err != nil || !info.Mode().IsRegular() {
				continue
			}
			data, err := os.ReadFile(f)
			if err != nil {
				return 0, err
			}
			if err := os.WriteFile(filepath.Join(a.dir, "etc", filepath.Dir(pattern), filepath.Base(f)), data, 0o644); err != nil {
				return 0, err
			}
			n++
		}
	}
	return n, nil
}

// configure writes our part of the configuration. Its first file, which APT_CONFIG names, sends apt to the
// private directory for all others.
func (a *Archive) configure(sources string) error {
	first := fmt.Sprintf("Dir::Etc %q;\n", a.path("etc"))
	if err := os.WriteFile(a.path("apt.conf"), []byte(first), 0o644); err != nil {
		return err
	}
	// With an empty dpkg status nothing counts as installed, so that a dependency closure is complete.
	if err := os.WriteFile(a.path("status"), nil, 0o644); err != nil {
		return err
	}
	var b strings.Builder
	for _, hooks := range []string{"APT::Update", "DPkg"} {
		for _, hook := range []string{"Pre-Invoke", "Post-Invoke", "Post-Invoke-Success", "Pre-Install-Pkgs"} {
			fmt.Fprintf(&b, "#clear %s::%s;\n", hooks, hook)
		}
	}
	for _, s := range [][2]string{
		{"Dir::State", a.path("state")},
		{"Dir::State::lists", "lists/"},
		{"Dir::State::status", a.path("status")},
		{"Dir::Cache", a.path("cache")},
		{"Dir::Cache::archives", "archives/"},
		{"Dir::Cache::pkgcache", "pkgcache.bin"},
		{"Dir::Cache::srcpkgcache", "srcpkgcache.bin"},
		{"Dir::Log", a.path("state")},
		{"Dir::Etc::sourcelist", a.path("etc/sources.list")},
		{"Dir::Etc::sourceparts", a.path("etc/sources.list.d")},
		{"Dir::Etc::preferences", filepath.Join(sources, "preferences")},
		{"Dir::Etc::preferencesparts", filepath.Join(sources, "preferences.d")},
		{"Dir::Etc::netrc", filepath.Join(sources, "auth.conf")},
		{"Dir::Etc::netrcparts", filepath.Join(sources, "auth.conf.d")},
		{"Dir::Etc::trusted", filepath.Join(sources, "trusted.gpg")},
		{"Dir::Etc::trustedparts", filepath.Join(sources, "trusted.gpg.d")},
		{"Acquire::Languages", "none"},
		{"Acquire::GzipIndexes", "false"},
		{"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false"},
		{"Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled", "false"},
		{"Acquire::Retries", "1"},
		{"APT::Sandbox::User", ""},
	} {
		fmt.Fprintf(&b, "%s %q;\n", s[0], s[1])
	}
	return os.WriteFile(a.path("etc/apt.conf.d/zzz-private"), []byte(b.String()), 0o644)
}

// Update fetches the package lists, once per Archive. Sources that do not answer are an error only when none
// does: the others may have what is asked for.
func (a *Archive) Update(ctx context.Context) error {
	if a.updated {
		return nil
	}
	a.progress("fetching package lists")
	if _, err := a.apt(ctx, "apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"); err != nil {
		if lists, _ := filepath.Glob(a.path("state/lists/*_Packages*")); len(lists) == 0 {
			return fmt.Errorf("debian packages: no package source answers: %w: %w", err, errdefs.ErrUnavailable)
		}
		a.unreachable = err
		a.progress("some package sources do not answer, going on with the others")
	}
	a.updated = true
	return nil
}

// Latest returns the version of a package that apt would install, from the lists as they are. NotFound when
// no source has it.
func (a *Archive) Latest(ctx context.Context, name string) (Package, error) {
	out, err := a.apt(ctx, "apt-cache", "show", "--no-all-versions", name)
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		if err = errdefs.ErrNotFound; a.unreachable != nil {
			err = fmt.Errorf("%w (some did not answer: %w)", err, a.unreachable)
		}
		return Package{}, fmt.Errorf("debian packages: %s: none of this machine's package sources has it: %w", name, err)
	}
	return parsePackage(out), nil
}

// Fetch downloads exactly the named packages (name or name=version) and returns their files, in order. Files
// that are there already are not downloaded again.
func (a *Archive) Fetch(ctx context.Context, names ...string) ([]string, error) {
	wanted, err := a.files(ctx, append([]string{"download"}, names...)...)
	if err != nil {
		return nil, err
	}
	var files, missing []string
	for _, name := range wanted {
		file := filepath.Join(a.path("debs"), name)
		files = append(files, file)
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, name)
		}
	}
	switch len(missing) {
	case 0:
		return files, nil
	case 1:
		a.progress("downloading " + missing[0])
	default:
		a.progress(fmt.Sprintf("downloading %d packages", len(missing)))
	}
	if _, err := a.aptIn(ctx, a.path("debs"), "apt-get", append([]string{"-q", "download"}, names...)...); err != nil {
		return nil, fmt.Errorf("debian packages: download: %w: %w", err, errdefs.ErrUnavailable)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("debian packages: apt did not download what it promised: %w", err)
		}
	}
	return files, nil
}

// FetchAll downloads the named packages with all that they depend on, as if nothing was installed, and
// returns the files.
func (a *Archive) FetchAll(ctx context.Context, names ...string) ([]string, error) {
	files, err := a.files(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, names...)...)
	if err != nil {
		return nil, err
	}
	for i, file := range files {
		// name_version_arch.deb, with %3a for the colon of a version
		part := strings.SplitN(strings.TrimSuffix(file, ".deb"), "_", 3)
		if len(part) != 3 {
			return nil, fmt.Errorf("debian packages: apt names the file %q: %w", file, errdefs.ErrInternal)
		}
		files[i] = part[0] + "=" + strings.ReplaceAll(part[1], "%3a", ":")
	}
	return a.Fetch(ctx, files...)
}

// files asks apt for the names of the files that a command would fetch.
func (a *Archive) files(ctx context.Context, command ...string) ([]string, error) {
	out, err := a.apt(ctx, "apt-get", append([]string{"-q", "--print-uris"}, command...)...)
	if err != nil {
		return nil, fmt.Errorf("debian packages: %s: %w: %w", command[len(command)-1], err, errdefs.ErrNotFound)
	}
	var files []string
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		// 'http://…/x_1_amd64.deb' x_1_amd64.deb 1234 SHA256:…
		if f := strings.Fields(s.Text()); len(f) >= 3 && strings.HasPrefix(f[0], "'") && strings.HasSuffix(f[1], ".deb") {
			files = append(files, filepath.Base(f[1]))
		}
	}
	return files, nil
}

func (a *Archive) apt(ctx context.Context, tool string, args ...string) ([]byte, error) {
	return a.aptIn(ctx, a.dir, tool, args...)
}

func (a *Archive) aptIn(ctx context.Context, dir, tool string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+a.path("apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", tool, err, lastLines(stderr.Bytes(), 5))
	}
	return stdout.Bytes(), nil
}

// parsePackage reads the first paragraph of apt-cache show.
func parsePackage(data []byte) Package {
	var p Package
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan() && s.Text() != ""; {
		key, value, _ := strings.Cut(s.Text(), ": ")
		switch key {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Architecture":
			p.Architecture = value
		case "Depends":
			for d := range strings.SplitSeq(value, ",") {
				if f := strings.Fields(d); len(f) > 0 {
					p.Depends = append(p.Depends, f[0])
				}
			}
		}
	}
	return p
}

// lastLines is the end of a command's output in one line.
func lastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// Extract unpacks a package's files into dir, which is made when missing.
func Extract(ctx context.Context, deb, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, lastLines(out, 3))
	}
	return nil
}
