package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

func TestTreeIsCheckedAgainstWhatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	client, server := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- writeTree(server, dir) }()
	fmt.Fprintln(client, 7)
	in := bufio.NewScanner(client)
	for n := range 60 { // more than one directory
		if !in.Scan() || in.Text() != fmt.Sprint(n) {
			t.Fatalf("%q instead of the acknowledgement of file %d", in.Text(), n)
		}
	}
	client.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := checkTree(dir, 7, 60); err != nil {
		t.Error(err)
	}
	if checkTree(dir, 8, 1) == nil {
		t.Error("the tree of another seed passes")
	}
	path, content := file(dir, 7, 31)
	content[len(content)/2] ^= 1
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	missing, _ := file(dir, 7, 59)
	if err := os.Remove(missing); err != nil {
		t.Fatal(err)
	}
	if err := checkTree(dir, 7, 60); err == nil || !strings.Contains(err.Error(), "2 of 60") {
		t.Errorf("a damaged and a missing file: %v", err)
	}
}

func TestWatchSeesSteps(t *testing.T) {
	w := &watch{}
	for _, r := range [][2]int64{{100, 1000}, {200, 1100}, {150, 5000}, {160, 4000}} {
		w.note(r[0], r[1])
	}
	want := Reading{Samples: 4, MonotonicNs: 160, RealtimeNs: 4000, MonotonicBackNs: 50, RealtimeBackNs: 1000, MonotonicJumpNs: 100, RealtimeJumpNs: 3900}
	if w.seen != want {
		t.Errorf("seen %+v, want %+v", w.seen, want)
	}
}
