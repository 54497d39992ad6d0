package modules

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// IndexFile is on the disk and says what is there, one fact a line:
//
//	module NAME PATH [NEEDED ...]    a module, its file, and the modules that must be loaded before it
//	alias PATTERN NAME               what the kernel may call it; '*', '?' and '[…]' are those of a shell
//
// '-' and '_' are the same in names, and '_' is written.
const IndexFile = "index"

// maxIndex bounds the index in bytes.
const maxIndex = 4 << 20

type module struct {
	name, path string
	needs      []string
}

type index struct {
	modules map[string]module
	aliases []alias
}

type alias struct{ pattern, name string }

// Canonical is how names are compared: the kernel takes '-' and '_' for the same.
func Canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

func parseIndex(r io.Reader) (index, error) {
	list := index{modules: map[string]module{}}
	lines := bufio.NewScanner(io.LimitReader(r, maxIndex))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 3 && fields[0] == "module":
			list.modules[fields[1]] = module{name: fields[1], path: fields[2], needs: fields[3:]}
		case len(fields) == 3 && fields[0] == "alias":
			list.aliases = append(list.aliases, alias{fields[1], fields[2]})
		case len(fields) > 0:
			return list, fmt.Errorf("line %.100q: neither a module nor an alias", lines.Text())
		}
	}
	return list, lines.Err()
}

// find returns the modules to load for a name, those that others need first.
func (x index) find(name string) []module {
	name = Canonical(name)
	wanted := []string{}
	if _, ok := x.modules[name]; ok {
		wanted = append(wanted, name)
	}
	for _, a := range x.aliases {
		if ok, err := path.Match(a.pattern, name); err == nil && ok {
			wanted = append(wanted, a.name)
		}
	}
	var order []module
	visited := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		m, ok := x.modules[name]
		if !ok || visited[name] {
			return
		}
		visited[name] = true
		for _, needed := range m.needs {
			visit(needed)
		}
		order = append(order, m)
	}
	for _, name := range slices.Compact(wanted) {
		visit(name)
	}
	return order
}
