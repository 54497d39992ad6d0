package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

//go:embed default.toml
var defaultFile []byte

// DefaultPath is where the configuration is looked for.
const DefaultPath = "/etc/pistis/config.toml"

// maxFileSize bounds what is read as a configuration.
const maxFileSize = 1 << 20

// DefaultFile is the default configuration as a file, with every key explained.
func DefaultFile() []byte { return bytes.Clone(defaultFile) }

// Default is the configuration without a file. It is complete and valid, and the caller's to change.
func Default() Config {
	var cfg Config
	if err := decode(defaultFile, &cfg); err != nil {
		panic("embedded default configuration: " + err.Error()) // held by a test
	}
	return cfg
}

// LoadOrDefault reads the file at path; for an empty path the one at DefaultPath, and where there is none it is the
// default configuration.
func LoadOrDefault(path string) (Config, error) {
	if path != "" {
		return Load(path)
	}
	cfg, err := Load(DefaultPath)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	return cfg, err
}

// Load reads the file over the default and checks it. Errors are InvalidArgument, or what reading gave.
func Load(path string) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	if info.Size() > maxFileSize {
		return Config{}, fmt.Errorf("configuration: %s: more than %d bytes: %w", path, maxFileSize, errdefs.ErrInvalidArgument)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	cfg, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %s: %w", path, err)
	}
	return cfg, nil
}

// Parse reads a file's content over the default and checks it. An unknown key is an error. Handlers that are
// given replace the default's.
func Parse(data []byte) (Config, error) {
	cfg := Default()
	handlers := cfg.Handlers
	cfg.Handlers = nil
	if err := decode(data, &cfg); err != nil {
		return Config{}, err
	}
	if len(cfg.Handlers) == 0 {
		cfg.Handlers = handlers
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

func decode(data []byte, cfg *Config) error {
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(cfg)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: %w", unknownKeys(unknown), errdefs.ErrInvalidArgument)
	case errors.As(err, &bad):
		line, column := bad.Position()
		return fmt.Errorf("line %d, column %d: %w: %w", line, column, err, errdefs.ErrInvalidArgument)
	default:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
}

func unknownKeys(missing *toml.StrictMissingError) error {
	var errs []error
	for _, e := range missing.Errors {
		line, _ := e.Position()
		key := ""
		for i, part := range e.Key() {
			if i > 0 {
				key += "."
			}
			key += part
		}
		errs = append(errs, fmt.Errorf("line %d: unknown key %q", line, key))
	}
	return errors.Join(errs...)
}
