package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// MaxSize bounds a record's file in bytes.
	MaxSize = 4 << 20

	suffix = ".json"
	// soonSuffix is that of files which may not be on the disk. One beside a record's own file is newer than that.
	soonSuffix = ".soon"

	tempMark  = ".tmp-"
	asideName = "corrupt"
)

// Store holds records of type T under ids.
type Store[T any] struct {
	dir     string
	version int
}

// Corrupt is a file of a record that Load could not read. Where an older one could be read, that counts.
type Corrupt struct {
	ID string
	// Path is where its file is now.
	Path string
	Err  error
}

type envelope struct {
	Version int             `json:"version"`
	ID      string          `json:"id"`
	Record  json.RawMessage `json:"record"`
}

// Open makes the directory where it is missing. version is the only version of records that is understood.
func Open[T any](dir string, version int) (*Store[T], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &Store[T]{dir: dir, version: version}, nil
}

// Put writes the record durably, over an older one of the same id.
func (s *Store[T]) Put(id string, record T) error { return s.put(id, suffix, record, s.writeDurably) }

// PutSoon writes the record, over an older one of the same id, and leaves it to the kernel when it comes to the disk. Any
// later process finds it, but a crash of the machine may bring back an older one, which is the last that was Put or a later
// one, or none where none was Put: it is for what such a crash changes anyway.
func (s *Store[T]) PutSoon(id string, record T) error {
	// In a file of its own: some file systems bring a name to the disk before what is in the file, and would so leave
	// nothing of a record that was Put.
	return s.put(id, soonSuffix, record, replace)
}

func (s *Store[T]) put(id, suffix string, record T, write func(path string, data []byte) error) error {
	path, err := s.path(id, suffix)
	if err != nil {
		return err
	}
	data, err := encode(s.version, id, record)
	if err != nil {
		return fmt.Errorf("save record: %s: %w", id, err)
	}
	if err := write(path, data); err != nil {
		return fmt.Errorf("save record: %s: %w", id, err)
	}
	return nil
}

// writeDurably is WriteFile; what was there soon has gone when it returns.
func (s *Store[T]) writeDurably(path string, data []byte) error {
	if err := replaceAfter(path, data, (*os.File).Sync); err != nil {
		return err
	}
	if err := remove(strings.TrimSuffix(path, suffix) + soonSuffix); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// Delete removes the record. There being none is not an error. A crash of the machine may bring it back, unless a Put of
// any id comes in between.
func (s *Store[T]) Delete(id string) error {
	// The newer file last: a crash in between leaves the newer record.
	for _, suffix := range []string{suffix, soonSuffix} {
		path, err := s.path(id, suffix)
		if err != nil {
			return err
		}
		if err := remove(path); err != nil {
			return fmt.Errorf("delete record: %w", err)
		}
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Load reads all records. Files that are not records of this version are moved into the directory "corrupt" and
// returned in the second value; left-overs of interrupted writes are removed.
func (s *Store[T]) Load() (map[string]T, []Corrupt, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("load records: %w", err)
	}
	records, soon := map[string]T{}, map[string]T{}
	var corrupt []Corrupt
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() {
			continue
		}
		if strings.Contains(name, tempMark) {
			if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
				return nil, nil, fmt.Errorf("load records: %w", err)
			}
			continue
		}
		into, suffix := records, suffix
		if strings.HasSuffix(name, soonSuffix) {
			into, suffix = soon, soonSuffix
		}
		id, isRecord := strings.CutSuffix(name, suffix)
		if !isRecord {
			continue
		}
		record, err := s.read(id, suffix)
		if err == nil {
			into[id] = record
			continue
		}
		path, moveErr := s.moveAside(name)
		corrupt = append(corrupt, Corrupt{ID: id, Path: path, Err: errors.Join(err, moveErr)})
	}
	maps.Copy(records, soon)
	return records, corrupt, nil
}

func (s *Store[T]) read(id, suffix string) (record T, err error) {
	path, err := s.path(id, suffix)
	if err != nil {
		return record, err
	}
	f, err := os.Open(path)
	if err != nil {
		return record, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return record, err
	}
	return decode[T](s.version, id, data)
}

func (s *Store[T]) moveAside(name string) (string, error) {
	aside := filepath.Join(s.dir, asideName)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return filepath.Join(s.dir, name), err
	}
	to := filepath.Join(aside, name)
	return to, os.Rename(filepath.Join(s.dir, name), to)
}

func (s *Store[T]) path(id, suffix string) (string, error) {
	if !ValidID(id) {
		return "", fmt.Errorf("record id %q: only letters, digits, '-', '_' and '.', at most 128 and not first a '.': %w", id, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(s.dir, id+suffix), nil
}

// ValidID reports whether id can name a record, and so a file or a directory.
func ValidID(id string) bool {
	if id == "" || len(id) > 128 || id[0] == '.' || strings.Contains(id, tempMark) {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

func encode[T any](version int, id string, record T) ([]byte, error) {
	body, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(envelope{Version: version, ID: id, Record: body})
	if err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%d bytes, at most %d are kept: %w", len(data), MaxSize, errdefs.ErrResourceExhausted)
	}
	return append(data, '\n'), nil
}

func decode[T any](version int, id string, data []byte) (record T, err error) {
	if len(data) > MaxSize {
		return record, fmt.Errorf("larger than %d bytes", MaxSize)
	}
	var e envelope
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return record, fmt.Errorf("not a record: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return record, errors.New("not a record: data after its end")
	}
	if e.Version != version {
		return record, fmt.Errorf("version %d, this program reads version %d", e.Version, version)
	}
	if e.ID != id {
		return record, fmt.Errorf("is for id %q", e.ID)
	}
	if err := json.Unmarshal(e.Record, &record); err != nil {
		return record, fmt.Errorf("record: %w", err)
	}
	return record, nil
}

// WriteFile replaces a file atomically and durably: after a crash, also of the machine, it is the old one or the new one.
func WriteFile(path string, data []byte) error {
	if err := replaceAfter(path, data, (*os.File).Sync); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// replace replaces a file atomically for all processes of this boot.
func replace(path string, data []byte) error {
	return replaceAfter(path, data, func(*os.File) error { return nil })
}

// replaceAfter has sync see the new file before it takes the old one's place.
func replaceAfter(path string, data []byte, sync func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+tempMark+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
