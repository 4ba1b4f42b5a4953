// Command inside runs in the lab's guest: it does work whose outcome a client can check, and says over TCP what it has
// done.
//
//	inside tree ADDRESS DIR       writes files for each client that connects, and acknowledges each
//	inside check DIR SEED N       looks at the first N files of a tree
//	inside clock ADDRESS          reads the clocks all the time, and for each line that a client sends
//
// On the hosts it looks at what they hold of a guest:
//
//	inside pages FILE OUT         writes a digest of each page of a file
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "tree":
		return serve(args[1], func(c net.Conn) error { return writeTree(c, args[2]) })
	case len(args) == 4 && args[0] == "check":
		seed, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		return checkTree(args[1], seed, n)
	case len(args) == 2 && args[0] == "clock":
		w := &watch{}
		go w.loop()
		return serve(args[1], w.answer)
	}
	if len(args) == 3 && args[0] == "pages" {
		return writePages(args[1], args[2])
	}
	return fmt.Errorf("what is %q?", args)
}

// serve answers connections until it is killed.
func serve(address string, answer func(net.Conn) error) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := answer(c); err != nil {
				fmt.Fprintln(os.Stderr, "inside:", err)
			}
		}()
	}
}
