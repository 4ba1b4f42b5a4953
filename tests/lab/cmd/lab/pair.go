package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/lab/emulator"
)

const pairHelp = `orders:  a COMMAND    a shell command on host a (or b)
         cut a        pull the plug of host a        on a   switch it on again
         status       the cluster, as the witness knows it
         end`

// runPair sets up two hosts and a witness and takes orders.
func runPair(ctx context.Context) error {
	say := func(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
	l, err := lab.Open(ctx, lab.Options{}, say)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := l.Cluster(ctx)
	if err != nil {
		return err
	}
	say("consoles and logs are in %s\n%s", l.Dir, pairHelp)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
	}()
	for {
		var line string
		select {
		case <-ctx.Done():
			return nil
		case l, ok := <-lines:
			if !ok {
				return nil
			}
			line = strings.TrimSpace(l)
		}
		word, rest, _ := strings.Cut(line, " ")
		var err error
		switch word {
		case "":
		case "end":
			return nil
		case "status":
			s, e := c.ClusterStatus(ctx)
			if err = e; err == nil {
				for _, m := range s.Members {
					say("%s %s %s", m.Role, m.Name, m.State)
				}
				for _, g := range s.Guests {
					say("guest %s: %s %s, primary %s, replica %s, term %d", g.Name, g.State, g.Detail, g.Primary, g.Replica, g.Term)
				}
			}
		case "cut":
			err = withHost(l, rest, func(h *lab.Host) error { return h.PowerCut() })
		case "on":
			err = withHost(l, rest, func(h *lab.Host) error { return h.PowerOn(ctx) })
		default:
			err = withHost(l, word, func(h *lab.Host) error {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
				defer cancel()
				return h.Run(ctx, emulator.Command{Argv: []string{"sh", "-c", rest}, Stdout: os.Stdout, Stderr: os.Stderr})
			})
		}
		if err != nil {
			say("%v", err)
		}
	}
}

func withHost(l *lab.Lab, name string, f func(*lab.Host) error) error {
	for _, h := range l.Hosts() {
		if h.Name == name {
			return f(h)
		}
	}
	return fmt.Errorf("%q is no order and no host\n%s", name, pairHelp)
}
