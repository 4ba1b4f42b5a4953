// Command lab runs things in the lab by hand, and is the -exec program of `go test` where tests need a KVM that this
// machine does not have.
//
//	go run ./tests/lab/cmd/lab build                 what a lab needs, into .cache/lab
//	go run ./tests/lab/cmd/lab run COMMAND ...       a shell command in a lab host
//	go run ./tests/lab/cmd/lab demo [OPTIONS]        `pollux demo` in a lab host
//	go run ./tests/lab/cmd/lab pair                  two hosts and a witness; then orders from standard input
//	go test -exec "$PWD/.cache/lab/bin/lab exec" PACKAGE
//	go run ./tests/lab/cmd/lab wanted                yes where KVM tests are to run in the lab, or no
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/lab/emulator"
	"github.com/pollux-ha/pollux/tests/lab/parts"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit *emulator.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.Code) // it has said what it had to say
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("build, run, demo, pair, exec or wanted? See the head of tests/lab/cmd/lab/main.go")
	}
	switch args[0] {
	case "build":
		return build(ctx)
	case "run":
		return runShell(ctx, args[1:])
	case "demo":
		return runDemo(ctx, args[1:])
	case "pair":
		return runPair(ctx)
	case "exec":
		return runTest(ctx, args[1:])
	case "wanted":
		wanted()
		return nil
	}
	return fmt.Errorf("%q is unknown", args[0])
}

// wanted says on standard output whether the lab is to be used, and on the other one why.
func wanted() {
	why := "POLLUX_LAB is set"
	if os.Getenv("POLLUX_LAB") == "" {
		err := kvm.Check()
		if err == nil {
			fmt.Println("no")
			return
		}
		why = fmt.Sprintf("this machine has no KVM that Pollux can use (%v)", err)
	}
	fmt.Fprintf(os.Stderr, "lab: %s: what needs one runs in the lab, on an emulated machine\n", why)
	fmt.Println("yes")
}

// build makes everything that takes time.
func build(ctx context.Context) error {
	if err := parts.Check(); err != nil {
		return err
	}
	kernel, err := parts.Fetch(ctx, parts.Cloud)
	if err != nil {
		return err
	}
	fmt.Println(kernel.Image)
	for _, p := range []string{"./cmd/pollux", "./tests/lab/agent", "./tests/lab/probe", "./tests/lab/cmd/lab"} {
		file, err := parts.Program(ctx, p)
		if err != nil {
			return err
		}
		fmt.Println(file)
	}
	return nil
}
