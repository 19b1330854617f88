package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// UntilSignal returns a context that ends with SIGINT or SIGTERM. A second signal ends the process at once.
func UntilSignal() (ctx context.Context, stop context.CancelFunc) {
	ctx, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// UntilStopped returns the context of a daemon. It ends with SIGINT or SIGTERM; further signals change nothing. A daemon
// survives SIGHUP, because it reloads nothing, and SIGPIPE, because the reader of its output may go away. Both signals
// have their usual effect on its children.
func UntilStopped() (ctx context.Context, stop context.CancelFunc) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE) // unlike Ignore, children do not inherit it
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}
