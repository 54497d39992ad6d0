package snapshot

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// benchmarkTar is like a distribution's base layer: many small files, some large ones.
func benchmarkTar(b *testing.B) []byte {
	var entries []tar.Header
	body := make([]byte, 1<<20)
	_, _ = rand.Read(body)
	for i := range 4000 {
		entries = append(entries, regular(fmt.Sprintf("usr/share/d%d/f%d", i%200, i), string(body[:100+i*7%12000])))
	}
	for i := range 60 {
		entries = append(entries, regular(fmt.Sprintf("usr/lib/l%d.so", i), string(body)))
	}
	return makeTar(b, entries...)
}

func BenchmarkConvert(b *testing.B) {
	raw := benchmarkTar(b)
	f, err := os.Create(filepath.Join(b.TempDir(), "disk"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if err := f.Truncate(0); err != nil {
			b.Fatal(err)
		}
		if _, err := convert(b.Context(), openerOf(raw), f, nothingBelow); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExtract(b *testing.B) {
	needRoot(b)
	raw := benchmarkTar(b)
	path := filepath.Join(b.TempDir(), "layer")
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := writeDirectory(b.Context(), path, openerOf(raw), nothingBelow); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(path); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkSanitize is the part of the conversion that is ours.
func BenchmarkSanitize(b *testing.B) {
	raw := benchmarkTar(b)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := io.Copy(io.Discard, newSanitizer(tar.NewReader(bytes.NewReader(raw)), plan{}, nothingBelow)); err != nil {
			b.Fatal(err)
		}
	}
}
