package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/xxh3"
)

// pageBytes is what one digest stands for.
const pageBytes = 4096

// writePages writes a digest of each page of a file, 8 bytes little-endian, to another.
func writePages(path, out string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	o, err := os.Create(out)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(o)
	in := bufio.NewReaderSize(f, 1<<20)
	page := make([]byte, pageBytes)
	for {
		if _, err := io.ReadFull(in, page); errors.Is(err, io.EOF) {
			return errors.Join(w.Flush(), o.Close())
		} else if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, xxh3.Hash(page))); err != nil {
			return err
		}
	}
}
