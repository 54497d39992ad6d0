// Package config is pistisd's configuration file: its Go form, the embedded default, reading and checking.
//
// It owns no state and starts nothing; a [Config] is a plain value that its holder must not change once it was
// handed out. The package imports nothing of ours. Every key is explained in default.toml, which is also what
// [Default] is made of, so that the documentation cannot drift from the code.
package config
