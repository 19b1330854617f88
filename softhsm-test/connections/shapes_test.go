package connections

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"countersign/softhsm-test/harness"
)

// shapes: other things to do with a connection. None of them costs much memory, keeps a device or an administrator out,
// or stops an authorization. Times are shown and not judged, because attackers and appliance share the processors.
func shapes(r *harness.Report, bin harness.Bin) {
	ctx := r.Context()
	s := open(ctx, r, bin)
	defer s.close()
	s.authorize(ctx, briefly)
	before := s.memory()
	for _, shape := range []struct {
		name  string
		greet greeting
	}{
		{"no handshake", silent},
		{"handshake, then silence", shaken},
		{"half a header", slow},
		{"TLS 1.2", old},
	} {
		s.Say("%s:", shape.name)
		cut := s.strangers.crowd(ctx, flood, shape.greet)
		s.Say("%d connections, %d cut before they had greeted", flood, cut)
		s.holdsUp(ctx)
		s.calm(ctx)
	}
	s.Say("streams with bodies that do not end:")
	end := s.streams()
	s.holdsUp(ctx)
	end()
	s.Say("connections that come and go:")
	end = s.storm(ctx)
	s.holdsUp(ctx)
	end()
	most := s.watched.most() - before
	r.Check(most < mostMemory, "memory (RSS) of countersignd: %.1f MB before, at most %+.1f MB more (less than %d)", mb(before), mb(most), mostMemory>>20)
}

// comers is how many devices connect anew under an attack.
const comers = 10

// holdsUp checks what must hold under an attack.
func (s *stage) holdsUp(ctx context.Context) {
	s.holdsFew(ctx)
	s.reached(ctx)
	took := s.authorize(ctx, briefly)
	s.Say("%d authorizations: median %.1f ms, longest %.1f ms", briefly, ms(quantile(took, 0.5)), ms(quantile(took, 1)))
	begun := time.Now()
	var failed error
	for range comers {
		s.device.Close()
		if _, err := s.once(ctx); err != nil {
			failed = err
		}
	}
	s.Check(failed == nil, "%d devices that connect now, from an address of strangers, are served, %.1f ms each%s",
		comers, ms(time.Since(begun))/comers, because(failed))
}

// Of streams.
const (
	streaming = 16 // connections
	perStream = 1000
)

// firstBytes are the beginning of each body.
var firstBytes = make([]byte, 32<<10)

// streams opens connections of HTTP/2, and on each more requests than the appliance allows, whose bodies begin and do
// not end.
func (s *stage) streams() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var busy atomic.Int64
	for range streaming {
		protocols := new(http.Protocols)
		protocols.SetHTTP2(true)
		transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // an attacker does not verify
		}, HTTP2: &http.HTTP2Config{StrictMaxConcurrentRequests: true}}
		for range perStream {
			all.Go(func() {
				req := harness.Must(http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/enrol", endless(ctx)))
				req.Header.Set("Content-Type", "application/json")
				res, err := transport.RoundTrip(req)
				if err != nil {
					return
				}
				if res.StatusCode == http.StatusTooManyRequests {
					busy.Add(1)
				}
				_ = res.Body.Close() // the answer does not matter
			})
		}
	}
	harness.Do(harness.Until(ctx, "a busy answer", func() (bool, error) { return busy.Load() > 0, nil }))
	return func() {
		cancel()
		all.Wait()
		s.Say("%d requests on %d connections, %d answered busy", streaming*perStream, streaming, busy.Load())
	}
}

// endless is a body that sends some bytes and then nothing until ctx ends.
func endless(ctx context.Context) io.Reader {
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(firstBytes)
		<-ctx.Done()
		_ = w.CloseWithError(ctx.Err())
	}()
	return r
}

// storm lets connections from all addresses come, make the handshake and go, as fast as they can.
func (s *stage) storm(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	var came atomic.Int64
	begun := time.Now()
	for opener := range openers {
		all.Go(func() {
			for i := opener; ctx.Err() == nil; i += openers {
				c, err := s.strangers.dial(ctx, i)
				if err != nil {
					continue // the end, or no port is free
				}
				if shaken(c) == nil {
					came.Add(1)
				}
				_ = c.(*net.TCPConn).SetLinger(0) // so that the port is free at once
				_ = c.Close()
			}
		})
	}
	harness.Do(harness.Until(ctx, "the storm", func() (bool, error) { return came.Load() > openers, nil }))
	return func() {
		cancel()
		all.Wait()
		s.Say("%.0f connections a second", float64(came.Load())/time.Since(begun).Seconds())
	}
}
