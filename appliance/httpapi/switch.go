package httpapi

import (
	"net/http"
	"sync/atomic"
)

// Switch is a handler that can be replaced while it serves.
type Switch struct{ current atomic.Pointer[http.Handler] }

// NewSwitch begins with a handler.
func NewSwitch(h http.Handler) *Switch {
	s := &Switch{}
	s.Use(h)
	return s
}

// Use is the handler of all requests that begin from now on.
func (s *Switch) Use(h http.Handler) { s.current.Store(&h) }

func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*s.current.Load()).ServeHTTP(w, r)
}
