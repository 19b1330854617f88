// Command countersignctl is the administrator's hand: countersignctl <noun> <verb>.
// It talks to the appliance's admin socket and decides nothing.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"countersign/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	p := cli.Process{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
	os.Exit(cli.Main(ctx, root(), p))
}
