package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// filesPerDir bounds a directory of the tree.
const filesPerDir = 50

// maxFileBytes bounds a file of the tree.
const maxFileBytes = 32 << 10

// file is the path and the content of a tree's nth file: all that there is to know about it.
func file(dir string, seed uint64, n int) (string, []byte) {
	var key [32]byte
	copy(key[:], fmt.Sprintf("%d/%d", seed, n))
	r := rand.NewChaCha8(key)
	content := make([]byte, 1+r.Uint64()%maxFileBytes)
	_, _ = r.Read(content) // never fails
	return filepath.Join(dir, fmt.Sprintf("d%04d", n/filesPerDir), fmt.Sprintf("f%06d", n)), content
}

// writeTree reads a seed and writes files until the client closes the connection. Each is acknowledged, by its number,
// when it is durable under its name: file synced, renamed, directory synced.
func writeTree(c net.Conn, dir string) error {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		path, content := file(dir, seed, n)
		if err := writeDurably(path, content); err != nil {
			return err
		}
		if _, gone := fmt.Fprintln(c, n); gone != nil {
			if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe) {
				return nil // the client has had enough
			}
			return err
		}
	}
}

func writeDurably(path string, content []byte) error {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// checkTree says which of a tree's first n files are missing or wrong.
func checkTree(dir string, seed uint64, n int) error {
	var wrong []string
	for i := range n {
		path, content := file(dir, seed, i)
		found, err := os.ReadFile(path)
		switch {
		case err != nil:
			wrong = append(wrong, err.Error())
		case !bytes.Equal(found, content):
			wrong = append(wrong, fmt.Sprintf("%s: %d bytes, not the %d that were acknowledged", path, len(found), len(content)))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d of %d acknowledged files are not there as they were written: %s", len(wrong), n, strings.Join(wrong[:min(10, len(wrong))], "; "))
	}
	fmt.Println(n, "files are there")
	return nil
}
