package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// What the image of test/bench/rootfs has: directories of files.
const (
	smallDir = "image/small" // 10,000 files of 1 KiB, in directories of 100
	firstDir = "image/first" // files of 4 KiB that are written to
	largeDir = "image/large" // files of 16 MiB that are written to
	bulkDir  = "image/bulk"  // the rest
)

// most bounds what is read of the bulk.
const most = 256 << 20

// loadRoot does to a root file system what has not been done to it before: reads files of the image, writes to them, makes
// others and removes them.
func loadRoot(root string) error {
	results := map[string]float64{}
	under := func(dir string) ([]string, error) { return filesOf(filepath.Join(root, dir)) }
	begin := time.Now()
	small, err := under(smallDir)
	if err != nil {
		return err
	}
	for _, path := range small {
		if _, err := os.ReadFile(path); err != nil {
			return err
		}
	}
	results["small files of the image found and read, a second"] = rate(len(small), begin)
	for _, first := range []struct{ what, dir string }{{"first write to a file of 4 KiB, ms", firstDir}, {"first write to a file of 16 MiB, ms", largeDir}} {
		files, err := under(first.dir)
		if err != nil {
			return err
		}
		begin := time.Now()
		for _, path := range files {
			if err := appendTo(path); err != nil {
				return err
			}
		}
		results[first.what] = 1000 / rate(len(files), begin)
	}
	begin = time.Now()
	data, made := make([]byte, 1<<10), len(small)/2 // virtio-fs's server has a descriptor for each file that the guest knows
	for i := range made {
		if err := makeFile(filepath.Join(root, "made", fmt.Sprint(i/100), fmt.Sprint(i)), data, i%100 == 0); err != nil {
			return err
		}
	}
	results["small files made, a second"] = rate(made, begin)
	begin = time.Now()
	for _, path := range small {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	results["small files of the image removed, a second"] = rate(len(small), begin)
	bulk, err := under(bulkDir)
	if err != nil {
		return err
	}
	if results["large files of the image read, MiB/s"], err = readAll(bulk); err != nil {
		return err
	}
	return report(results)
}

// filesOf lists the regular files of a tree.
func filesOf(dir string) (files []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	return files, err
}

// readTree reads the files of a tree, as far as readAll reads.
func readTree(dir string) error {
	files, err := filesOf(dir)
	if err != nil {
		return err
	}
	_, err = readAll(files)
	return err
}

func rate(n int, since time.Time) float64 { return float64(n) / time.Since(since).Seconds() }

func appendTo(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Close())
}

func makeFile(path string, data []byte, withDir bool) error {
	if withDir {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(path, data, 0o644)
}

// readAll returns MiB a second.
func readAll(files []string) (float64, error) {
	begin, sum := time.Now(), int64(0)
	for _, path := range files {
		if sum >= most {
			break
		}
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		sum += n
	}
	return rate(int(sum), begin) / (1 << 20), nil
}
