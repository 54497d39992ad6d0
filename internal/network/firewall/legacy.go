package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// toolTimeout bounds a call of iptables, lockWait what it waits for others that call it.
const (
	toolTimeout = 10 * time.Second
	lockWait    = "5"
)

// oldTables are one IP version's tables of the old iptables, which only its own tools can change.
type oldTables struct {
	names string   // the kernel's list of its tables
	tools []string // that may be the old ones, the surest first
	layout
}

func allOldTables() []oldTables {
	ipv4, ipv6 := layouts()
	return []oldTables{
		{"/proc/thread-self/net/ip_tables_names", []string{"iptables-legacy", "iptables"}, ipv4},
		{"/proc/thread-self/net/ip6_tables_names", []string{"ip6tables-legacy", "ip6tables"}, ipv6},
	}
}

// filters says whether there is a filter table. Asking a tool would make one.
func (f oldTables) filters() bool {
	names, err := os.ReadFile(f.names)
	return err == nil && slices.Contains(strings.Fields(string(names)), forwardTable)
}

// tool finds a tool for these tables; empty where there is none.
func (o *OpenForwarding) tool(f oldTables) string {
	for _, name := range f.tools {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if o.isOld(path) {
			return path
		}
	}
	return ""
}

// isOld asks a tool once which it is. What a link leads to may change.
func (o *OpenForwarding) isOld(path string) bool {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	if known, asked := o.old.Load(target); asked {
		return known.(bool)
	}
	out, err := run(path, "--version")
	if err != nil {
		return false // it may be able to answer the next time
	}
	old := !strings.Contains(out, "nf_tables")
	o.old.Store(target, old)
	return old
}

// legacyRules are those of OpenForwarding in iptables' words.
func (o *OpenForwarding) legacyRules() [][]string {
	var rules [][]string
	for _, direction := range []string{"-i", "-o"} {
		rules = append(rules, []string{direction, o.Bridge, "-m", "comment", "--comment", o.comment(), "-j", "ACCEPT"})
	}
	return rules
}

// listedRule is a rule as iptables lists it.
func (o *OpenForwarding) listedRule(rule []string) string {
	words := slices.Clone(rule)
	words[slices.Index(words, o.comment())] = strconv.Quote(o.comment())
	return "-A " + forwardChain + " " + strings.Join(words, " ") + "\n"
}

// ensureLegacy is Ensure for the old iptables.
func (o *OpenForwarding) ensureLegacy() error {
	for _, f := range allOldTables() {
		if !f.filters() {
			continue
		}
		// This is done for each pod. A table that nobody has changed since its rules were seen has them still.
		sum, read := f.digest()
		if seen, ok := o.seen.Load(f.names); ok && read && seen == sum {
			continue
		}
		tool := o.tool(f)
		if tool == "" {
			o.warn(fmt.Sprintf("this host has a filter table of the old iptables, but not the command %s to change it: if its FORWARD chain drops packets, let it accept the interface %s in both directions", f.tools[0], o.Bridge))
			continue
		}
		added, err := o.ensureRules(tool)
		if err != nil {
			return err
		}
		if read && !added {
			o.seen.Store(f.names, sum)
		}
	}
	return nil
}

// ensureRules adds with a tool what is missing.
func (o *OpenForwarding) ensureRules(tool string) (added bool, err error) {
	listed, err := run(tool, "-w", lockWait, "-t", forwardTable, "-S", forwardChain)
	if err != nil {
		return false, err
	}
	for _, rule := range o.legacyRules() {
		// One list for all of them. What it does not say in these words, the tool is asked for.
		if strings.Contains(listed, o.listedRule(rule)) {
			continue
		}
		there, err := change(tool, "-C", rule)
		if err != nil {
			return added, err
		}
		if there {
			continue
		}
		if done, err := change(tool, "-I", rule); err != nil || !done {
			return added, errors.Join(fmt.Errorf("%s: accept packets of %s in the FORWARD chain", tool, o.Bridge), err)
		}
		added = true
	}
	return added, nil
}

// removeLegacy is Remove for the old iptables.
func (o *OpenForwarding) removeLegacy() error {
	for _, f := range allOldTables() {
		tool := ""
		if f.filters() {
			tool = o.tool(f)
		}
		if tool == "" {
			continue
		}
		for _, rule := range o.legacyRules() {
			for there := true; there; {
				var err error
				if there, err = change(tool, "-D", rule); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// change calls a tool for one rule of the FORWARD chain; false says that there is no such rule.
func change(tool, operation string, rule []string) (bool, error) {
	args := slices.Concat([]string{"-w", lockWait, "-t", forwardTable, operation, forwardChain}, rule)
	_, err := run(tool, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return false, nil
	}
	return err == nil, err
}

func run(tool string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}
