package convert

import (
	"path/filepath"
	"strings"
)

const (
	// maxName is the longest name that Kubernetes gives anything.
	maxName = 253
	// maxPairs bounds labels and annotations together, in bytes. Kubernetes allows 256 KiB of annotations.
	maxPairs = 1 << 20
)

func hasNUL(s string) bool   { return strings.ContainsRune(s, 0) }
func hasSpace(s string) bool { return strings.ContainsAny(s, " \t\r\n\v\f\x00") }

// validateName takes names as Kubernetes gives them, and those that other clients like; they become parts of
// identifiers, never of paths.
func validateName(field, name string) error {
	switch {
	case name == "":
		return invalid("%s is missing", field)
	case len(name) > maxName:
		return invalid("%s: %q… has %d characters, at most %d are allowed", field, name[:32], len(name), maxName)
	case hasSpace(name):
		return invalid("%s: %q has white space in it", field, name)
	case strings.Contains(name, "/"):
		return invalid("%s: %q has a slash in it", field, name)
	}
	return nil
}

func validatePairs(field string, labels, annotations map[string]string) error {
	size := 0
	for kind, pairs := range map[string]map[string]string{"labels": labels, "annotations": annotations} {
		for key, value := range pairs {
			size += len(key) + len(value)
			switch {
			case key == "":
				return invalid("%s.%s: a key is empty", field, kind)
			case hasNUL(key) || hasNUL(value):
				return invalid("%s.%s: %q has a NUL byte in it", field, kind, key)
			}
		}
	}
	if size > maxPairs {
		return invalid("%s: labels and annotations have %d bytes, at most %d are allowed", field, size, maxPairs)
	}
	return nil
}

// validateLogPath keeps a container's log inside its pod's log directory.
func validateLogPath(logDir, path string) error {
	switch {
	case path == "":
		return nil
	case logDir == "":
		return invalid("config.log_path: %q is given, but the pod was made without a log_directory for it to be in", path)
	case filepath.IsAbs(path):
		return invalid("config.log_path: %q is absolute, it must be relative to the pod's log_directory %q", path, logDir)
	case !filepath.IsLocal(path) || filepath.Clean(path) == "." || strings.HasSuffix(path, "/") || hasNUL(path):
		return invalid("config.log_path: %q is not a file below the pod's log_directory %q", path, logDir)
	}
	return nil
}
