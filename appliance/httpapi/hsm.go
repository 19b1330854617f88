package httpapi

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/admin"
)

// maxPIN is the longest PIN taken, in bytes; tokens take at most 255 (CK_TOKEN_INFO.ulMaxPinLen
// of those known).
const maxPIN = 255

// HSM serves the part of the admin API that needs no appliance: it is there while
// the token is still locked.
type HSM struct {
	Status func() []admin.Token
	// Unlock tries a PIN once on the token of that name, "" for the only one. The
	// PIN is the callee's to erase.
	Unlock func(ctx context.Context, token string, pin []byte) error
	// Drain lets a token finish what it does and gives it no more; false takes that
	// back.
	Drain  func(ctx context.Context, token string, drain bool) error
	Logger hclog.Logger
}

// Handler of these routes alone.
func (h *HSM) Handler() http.Handler {
	mux := http.NewServeMux()
	h.routes(mux)
	mux.HandleFunc(admin.Prefix, func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusServiceUnavailable, admin.Problem{
			Type: admin.ProblemLocked, Title: "locked", Status: http.StatusServiceUnavailable, Detail: "the HSM waits for its PIN",
		})
	})
	return mux
}

func (h *HSM) routes(mux *http.ServeMux) {
	handleAdmin(mux, "GET hsm", h.Logger, func(*http.Request) (any, error) { return h.Status(), nil })
	handleAdmin(mux, "POST hsm/unlock", h.Logger, h.unlock)
	for verb, drain := range map[string]bool{"drain": true, "resume": false} {
		handleAdmin(mux, "POST hsm/{token}/"+verb, h.Logger, func(r *http.Request) (any, error) {
			if err := h.Drain(r.Context(), r.PathValue("token"), drain); err != nil {
				return nil, err
			}
			return h.Status(), nil
		})
	}
}

// unlock takes the PIN as the body, byte for byte, so that it can be erased.
func (h *HSM) unlock(r *http.Request) (any, error) {
	pin, err := io.ReadAll(io.LimitReader(r.Body, maxPIN+1)) // into one buffer: it grows beyond 512 bytes only
	defer clear(pin)
	if err != nil || len(pin) == 0 || len(pin) > maxPIN {
		return nil, fmt.Errorf("%w: the body is to be the PIN, 1 to %d bytes, and whole", appliance.ErrInput, maxPIN)
	}
	if err := h.Unlock(r.Context(), r.URL.Query().Get("token"), pin); err != nil {
		return nil, err
	}
	return h.Status(), nil
}
