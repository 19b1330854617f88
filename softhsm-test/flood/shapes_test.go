package flood

import (
	"countersign/softhsm-test/harness"
)

func shapes(r *harness.Report, bin harness.Bin) {
	ctx := r.Context()
	s := open(ctx, r, bin)
	defer s.close()
	s.authorize(ctx, briefly)
	for _, shape := range []struct {
		name  string
		greet greeting
	}{
		{"no handshake", silent},
		{"handshake, then silence", shaken},
		{"HTTP/2, then silence", settled},
		{"half a header", slow},
		{"TLS 1.2", old},
	} {
		before := s.memory()
		cut := s.strangers.crowd(ctx, flood, shape.greet)
		held := s.metric(ctx, `countersign_api_connections{kind="stranger"}`)
		s.Check(held <= 512, "%s: %d connections, %d cut before they had greeted, held %.0f, memory %+.1f MB", shape.name, flood, cut, held, mb(s.memory()-before))
		s.reached(ctx)
		s.authorize(ctx, briefly)
		s.calm(ctx)
	}
}
