// Pollux keeps a virtual machine running when the host under it dies. This is its one binary: the
// daemons of hosts and witnesses, the processes that hold guests, and the operator's command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
