package taskshim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/shimclient"
)

// stage is how far a container has come with its shim.
type stage string

const (
	stageNone   stage = ""       // nobody was asked
	stageCalled stage = "called" // the binary was called, or is about to be
	stageMade   stage = "made"   // the shim has the container
)

// record is what is known of a container whoever dies. It is written before what it says is done.
type record struct {
	// Binary is the shim's, Bundle the container's directory, whose base is the container's id.
	Binary      string `json:"binary"`
	Bundle      string `json:"bundle"`
	CgroupsPath string `json:"cgroups_path"`
	Terminal    bool   `json:"terminal,omitempty"`
	Stdin       bool   `json:"stdin,omitempty"`
	StdinOnce   bool   `json:"stdin_once,omitempty"`
	// First: the pod's other containers live in what this one has, so that it ends last.
	First  bool              `json:"first,omitempty"`
	Stage  stage             `json:"stage,omitempty"`
	Answer shimclient.Answer `json:"answer,omitzero"`
}

const recordSuffix = ".json"

// records is the directory of them, beside the bundle of the monitor.
func records(monitor string) string { return filepath.Join(filepath.Dir(monitor), "shims") }

func recordFile(dir, id string) string { return filepath.Join(dir, id+recordSuffix) }

// readRecords returns them by container.
func readRecords(dir string) (map[string]record, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("records of shims: %w", err)
	}
	found := map[string]record{}
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), recordSuffix)
		if !ok {
			continue // half written, of a daemon that died
		}
		var rec record
		if err := bundle.ReadRecord(recordFile(dir, id), &rec); err != nil {
			return nil, fmt.Errorf("records of shims: %w", err)
		}
		found[id] = rec
	}
	return found, nil
}
