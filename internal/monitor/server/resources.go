package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/bundle"
)

// mergeResources changes linux.resources in the spec of a container that has not been started: what is not in resources
// stays as it is.
func mergeResources(dir string, resources json.RawMessage) error {
	var change map[string]any
	decoder := json.NewDecoder(bytes.NewReader(resources))
	decoder.UseNumber()
	if err := decoder.Decode(&change); err != nil {
		return fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return mergeSpec(dir, map[string]any{"linux": map[string]any{"resources": change}})
}

// mergeSpec changes the spec of a container that has not been started. Fields that are not known here stay.
func mergeSpec(dir string, change map[string]any) error {
	var spec map[string]any
	if err := readSpec(dir, &spec); err != nil {
		return err
	}
	merge(spec, change)
	return bundle.WriteRecord(filepath.Join(dir, specFile), spec)
}

// merge puts what change has into old, object by object.
func merge(old, change map[string]any) {
	for key, value := range change {
		into, ok := old[key].(map[string]any)
		object, isObject := value.(map[string]any)
		if ok && isObject {
			merge(into, object)
			continue
		}
		old[key] = value
	}
}
