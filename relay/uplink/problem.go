package uplink

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"countersign/protocol"
)

// problem is why the appliance does not serve a device. Problems of one kind differ in their details.
type problem struct{ kind, text string }

// kindRefused is the kind of a problem that only the appliance ends, by serving the device.
const kindRefused = "refused"

// kindClock is the kind of a problem that a wrong clock explains, here or on the appliance's host.
const kindClock = "clock"

// problemOf returns the problem of a call. It is zero if the appliance answered, unless it refused the device.
func problemOf(err error, now time.Time) problem {
	var answered *StatusError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return problem{}
	case errors.As(err, &answered) && answered.Code == protocol.CodeDevice:
		return problem{kindRefused, "the appliance refuses this device (code 15): " +
			"it is suspended or revoked, or its certificate is no longer accepted"}
	case errors.As(err, &answered):
		return problem{}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		date := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
		return problem{kindClock, fmt.Sprintf("the appliance's certificate is valid from %s to %s, "+
			"and the clock of this device says %s: set the clock",
			date(invalid.Cert.NotBefore), date(invalid.Cert.NotAfter), date(now))}
	case errors.Is(err, errStranger):
		return problem{"stranger", err.Error()}
	case errors.Is(err, protocol.CodeTimeout):
		return problem{"timeout", err.Error()}
	}
	return problem{"unreachable", err.Error()}
}

// shows returns what a call with this result shows about the appliance.
func (r request) shows(err error) finding {
	var answered *StatusError
	if r.isRecent && errors.As(err, &answered) && answered.Status == http.StatusNotFound {
		return finding{isReachable: true}
	}
	code, _ := protocol.CodeOf(err)
	return finding{
		isReachable: code != protocol.CodeServerUnreachable && code != protocol.CodeTimeout,
		isServed:    err == nil && !r.isOpen,
		problem:     problemOf(err, time.Now()),
	}
}

// find returns what a call shows. A device whose certificate has ended needs another enrolment, so this
// comes before every other problem but a wrong clock, which is more likely than an old certificate.
func (c *Client) find(r request, err error) finding {
	f, until := r.shows(err), c.Identity().NotAfter
	if f.problem.kind != "" && f.problem.kind != kindClock && time.Now().After(until) {
		f.problem = problem{kindRefused, fmt.Sprintf("this device's certificate ended at %s: enrol the device again in "+
			"another state directory, with a code of countersignctl device invite --replace", until.UTC().Format(time.RFC3339))}
	}
	return f
}

// finding is what a call shows about the appliance.
type finding struct {
	isReachable bool
	isServed    bool // the appliance gave this device an answer that others do not get
	problem     problem
}

// change is how a finding differs from the one before.
type change struct {
	finding
	reached bool // reachability changed
	worse   bool // there is a problem of another kind than before
	better  bool // the appliance serves the device again, after it refused it
}

// judge takes in a finding, unless a later call has ended before. A refusal of the device stands until the appliance
// serves it: strangers get an answer too.
func (c *Client) judge(number uint64, f finding) change {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number < c.last {
		return change{}
	}
	c.last = number
	wasRefused := c.problem.kind == kindRefused
	if wasRefused && f.problem.kind == "" && !f.isServed {
		f.problem = c.problem
	}
	d := change{
		finding: f, worse: f.problem.kind != c.problem.kind && f.problem.kind != "",
		better: wasRefused && f.problem.kind == "", reached: c.reachable.Swap(f.isReachable) != f.isReachable,
	}
	c.problem = f.problem
	return d
}

// note logs a change, once.
func (c *Client) note(d change) {
	if d.worse {
		c.config.Log.Warn("appliance does not serve this device", "problem", d.problem.text, "url", c.config.URL)
	}
	if d.better {
		c.config.Log.Info("appliance serves this device again", "url", c.config.URL)
	}
	if d.reached {
		c.config.Log.Info("appliance changed", "reachable", d.isReachable, "url", c.config.URL)
	}
	if d.worse || d.better || d.reached {
		c.config.Changed()
	}
}
