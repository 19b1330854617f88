package api

import (
	"net/http"
	"strings"
	"sync"
	"time"
)

// refusals bounds the lines of the log about enrolments that were refused, because any peer can cause one.
type refusals struct {
	mu     sync.Mutex // guards the fields below
	minute time.Time  // in which lines were written
	lines  int
	more   int // refusals of the minute without a line
}

// refusalLines is how many of them get a line in one minute.
const refusalLines = 20

// admit reports whether a refusal gets a line, and how many refusals of an earlier minute got none.
func (l *refusals) admit(now time.Time) (line bool, missed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if minute := now.Truncate(time.Minute); !minute.Equal(l.minute) {
		missed = l.more
		l.minute, l.lines, l.more = minute, 0, 0
	}
	if l.lines == refusalLines {
		l.more++
		return false, missed
	}
	l.lines++
	return true, missed
}

// enrols reports whether a request asks for an enrolment, or for the next certificate of a device.
func enrols(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/v1/enrol") || r.URL.Path == "/v1/renew"
}

// logRefusal writes why an enrolment was refused. The error has no activation code.
func (a *API) logRefusal(r *http.Request, status int, err error) {
	line, missed := a.refusals.admit(time.Now())
	if missed > 0 {
		a.Logger.Info("more enrolments were refused than have a line", "refused", missed)
	}
	if line {
		a.Logger.Info("enrolment refused", "path", r.URL.Path, "peer", r.RemoteAddr, "status", status, "error", err)
	}
}
