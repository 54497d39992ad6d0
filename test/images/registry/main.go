// Command registry builds the test images and serves them on this host until it is told to stop.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/pistis-run/pistis/test/images"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address to serve on")
	cache := flag.String("cache", "", "directory that keeps built images (default .cache/images in the source tree)")
	addressFile := flag.String("address-file", "", "file to write the address to, once it serves")
	tests := flag.Bool("tests", false, "serve the images of the integration tests too")
	conformance := flag.Bool("conformance", false, "serve the images of critest too")
	storage := flag.Bool("storage", false, "serve the images with fio too")
	show := flag.Bool("print", false, "print the references of all images")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	groups := []images.Group{images.Tour}
	if *tests {
		groups = append(groups, images.Tests, images.Broken)
	}
	if *conformance {
		groups = append(groups, images.Conformance)
	}
	if *storage {
		groups = append(groups, images.Storage)
	}
	r, err := images.Serve(ctx, images.Options{
		Listen: *listen, Cache: *cache, Groups: groups,
		Progress: func(line string) { fmt.Fprintln(os.Stderr, line) },
	})
	if err != nil {
		return err
	}
	defer r.Close()
	if *show {
		for _, ref := range r.Refs() {
			fmt.Println(r.Ref(ref))
		}
	}
	if *addressFile != "" {
		// Renamed, so that a reader never sees half an address.
		if err := os.WriteFile(*addressFile+".part", []byte(r.Address+"\n"), 0o644); err != nil {
			return err
		}
		if err := os.Rename(*addressFile+".part", *addressFile); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "serving on", r.Address)
	<-ctx.Done()
	return nil
}
