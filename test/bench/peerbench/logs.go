package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	// warmUp is how much a log must have before its growth is measured, in bytes.
	warmUp = 16 << 20
	// enough ends a measurement before its time, in bytes.
	enough = 256 << 20
	// span is how long a log is watched.
	span = 3 * time.Second
)

// writer is a command that writes lines of 100 bytes as fast as its reader takes them, at little cost of its own.
func writer() []string {
	script := fmt.Sprintf("yes %s | head -n 80000 >/tmp/lines; while cat /tmp/lines; do :; done", strings.Repeat("x", 99))
	return []string{"sh", "-c", script}
}

// logs measures how fast a container can write its log, the subjects by turns.
func (b *bench) logs(ctx context.Context) error {
	if !b.wants(logRate) {
		return nil
	}
	for i := range b.turns {
		progress(fmt.Sprintf("logs: turn %d of %d", i+1, b.turns))
		for _, s := range b.subjects {
			p, err := b.run(ctx, s, b.name(), writer()...)
			if err != nil {
				return err
			}
			got, err := growth(ctx, p.Log())
			if err := errors.Join(err, s.Remove(ctx, p.Sandbox), os.RemoveAll(p.Config.LogDirectory)); err != nil {
				return err
			}
			b.add(logRate, s.title(), got)
		}
		if b.conmon != nil {
			got, err := b.conmon.throughput(ctx)
			if err != nil {
				return err
			}
			b.add(logRate, conmonTitle, got)
		}
	}
	return nil
}

// growth is how fast a file grows, in MB/s (10^6 bytes).
func growth(ctx context.Context, path string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// A file's growth is no event that is worth having at this rate.
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var first int64
	var begin time.Time
	for {
		if info, err := os.Stat(path); err == nil {
			switch size := info.Size(); {
			case begin.IsZero() && size >= warmUp:
				first, begin = size, time.Now()
			case !begin.IsZero() && (size >= enough || time.Since(begin) > span):
				return float64(size-first) / 1e6 / time.Since(begin).Seconds(), nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting for %s to grow: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}
