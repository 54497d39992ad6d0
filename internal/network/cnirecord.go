package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"

	"github.com/pistis-run/pistis/internal/store"
)

// cniRecord is written before the plugins run for a pod and removed after they have undone it. It has all that DEL
// needs: the configuration may be another one by then.
type cniRecord struct {
	Version int `json:"version"`
	Pod     Pod `json:"pod"`
	// Network and its plugins' configurations as they were.
	Network      string            `json:"network"`
	CNIVersion   string            `json:"cni_version"`
	DisableCheck bool              `json:"disable_check,omitempty"`
	Bytes        json.RawMessage   `json:"bytes"`
	Plugins      []json.RawMessage `json:"plugins"`
}

const cniRecordVersion = 1

func newCNIRecord(pod Pod, list *libcni.NetworkConfigList) cniRecord {
	r := cniRecord{Version: cniRecordVersion, Pod: pod, Network: list.Name, CNIVersion: list.CNIVersion, DisableCheck: list.DisableCheck, Bytes: list.Bytes}
	for _, p := range list.Plugins {
		r.Plugins = append(r.Plugins, p.Bytes)
	}
	return r
}

// list is the network as it was.
func (r cniRecord) list() (*libcni.NetworkConfigList, error) {
	list := &libcni.NetworkConfigList{Name: r.Network, CNIVersion: r.CNIVersion, DisableCheck: r.DisableCheck, Bytes: r.Bytes}
	for _, data := range r.Plugins {
		p, err := libcni.NetworkPluginConfFromBytes(data)
		if err != nil {
			return nil, fmt.Errorf("recorded configuration of network %s: %w: %w", r.Network, err, errdefs.ErrDataLoss)
		}
		list.Plugins = append(list.Plugins, p)
	}
	return list, nil
}

func decodeCNIRecord(data []byte) (cniRecord, error) {
	var r cniRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	if r.Version != cniRecordVersion {
		return r, fmt.Errorf("form %d is not known, only %d: %w", r.Version, cniRecordVersion, errdefs.ErrFailedPrecondition)
	}
	return r, nil
}

// cniRecords is the directory of the records, one file per pod.
type cniRecords string

func (d cniRecords) path(id string) string { return filepath.Join(string(d), id+".json") }

// get fails with ErrNotFound for a pod without a record.
func (d cniRecords) get(id string) (cniRecord, error) {
	data, err := os.ReadFile(d.path(id))
	if errors.Is(err, os.ErrNotExist) {
		return cniRecord{}, fmt.Errorf("no network was set up: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return cniRecord{}, fmt.Errorf("read network record: %w", err)
	}
	r, err := decodeCNIRecord(data)
	if err != nil {
		return r, fmt.Errorf("read network record: %s: %w", d.path(id), err)
	}
	return r, nil
}

func (d cniRecords) put(r cniRecord) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write network record: %w", err)
	}
	// Plugins keep addresses across boots: a record that a power failure empties would leave nobody able to free them.
	if err := store.WriteFile(d.path(r.Pod.ID), data); err != nil {
		return fmt.Errorf("write network record: %w", err)
	}
	return nil
}

func (d cniRecords) remove(id string) error {
	if err := os.Remove(d.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network record: %w", err)
	}
	return nil
}

// ids lists the pods that have a record.
func (d cniRecords) ids() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("list network records: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
