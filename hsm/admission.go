package hsm

import "context"

type newWork struct{}

// NewWork marks calls that begin something. When more is asked of a token than it
// can do, they are refused with [ErrBusy] first, so that what was begun before can
// end: work that is refused half way was done for nothing.
func NewWork(ctx context.Context) context.Context { return context.WithValue(ctx, newWork{}, true) }

// IsNewWork tells what [NewWork] marked.
func IsNewWork(ctx context.Context) bool { return ctx.Value(newWork{}) != nil }
