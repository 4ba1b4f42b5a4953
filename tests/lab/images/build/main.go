// Command build makes the lab's images ahead of the tests, and says where they are.
//
//	go run ./tests/lab/images/build [-cache DIR] [postgres|orthanc|client]...
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/pollux-ha/pollux/tests/lab/images"
)

func main() {
	log.SetFlags(0)
	cache := flag.String("cache", ".cache/lab", "where everything is kept")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := build(ctx, *cache, flag.Args()); err != nil {
		cancel()
		log.Fatalln("images:", err)
	}
}

func build(ctx context.Context, cache string, names []string) error {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = []string{"postgres", "orthanc", "client"}
	}
	for _, name := range names {
		switch name {
		case "postgres", "orthanc":
			make := images.Postgres
			if name == "orthanc" {
				make = images.Orthanc
			}
			img, err := make(ctx, cache, log.Printf)
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stdout, name, img.Disk)
		case "client":
			tree, err := images.Client(ctx, cache, log.Printf)
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stdout, name, tree.Dir)
		default:
			return fmt.Errorf("there is no image %q: postgres, orthanc and client are known", name)
		}
	}
	return nil
}
