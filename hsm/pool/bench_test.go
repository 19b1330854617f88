package pool

import (
	"crypto/ecdh"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"countersign/hsm"
	"countersign/hsm/pkcs11"
)

// bench holds one SoftHSM token opened both ways: in this process and through
// two workers. The module is initialized once per process, so all benchmarks
// share it.
type bench struct {
	direct            *pkcs11.Token
	sign, derive, mac hsm.KeyID
	peer              *ecdh.PublicKey
	bring             hsm.Import // what Import takes
	kept              []byte     // what it returned
}

// operation is one call with arguments that stay the same.
type operation func(b *testing.B, token hsm.Token)

func (x *bench) operations() map[string]operation {
	check := func(b *testing.B, err error) {
		if err != nil {
			b.Error(err)
		}
	}
	digest := make([]byte, 32)
	return map[string]operation{
		"sign": func(b *testing.B, token hsm.Token) {
			_, err := token.Sign(b.Context(), x.sign, hsm.ES256, digest)
			check(b, err)
		},
		"derive": func(b *testing.B, token hsm.Token) {
			_, err := token.Decap(b.Context(), x.derive, hsm.DHKEM, x.peer)
			check(b, err)
		},
		"mac": func(b *testing.B, token hsm.Token) {
			_, err := token.MAC(b.Context(), x.mac, digest)
			check(b, err)
		},
		"mac-wrapped": func(b *testing.B, token hsm.Token) {
			_, err := token.MACWrapped(b.Context(), x.bring.Wrap, x.kept, digest)
			check(b, err)
		},
		"import": func(b *testing.B, token hsm.Token) {
			_, err := token.Import(b.Context(), x.bring)
			check(b, err)
		},
	}
}

// BenchmarkHSM compares each operation made directly with the same through the workers.
// hop-µs is the mean time of a call beyond the time that the worker reports inside the
// token; with more callers than sessions it includes their queueing. A call that follows a
// sleep, as every sequential one in a worker does, is slower in the token too, in any
// process.
func BenchmarkHSM(b *testing.B) {
	registry := prometheus.NewRegistry()
	r := newRig(b, func(c *Config) { c.Registerer = registry })
	x := newBench(b, r)
	ops := x.operations()
	for _, name := range []string{"sign", "derive", "mac", "mac-wrapped", "import"} {
		for _, parallel := range []int{1, 16, 32} {
			mode := map[int]string{1: "sequential", 16: "16", 32: "32"}[parallel]
			b.Run(name+"/direct/"+mode, func(b *testing.B) { measure(b, nil, x.direct, ops[name], parallel) })
			b.Run(name+"/worker/"+mode, func(b *testing.B) {
				before := outside(b, registry)
				measure(b, r.pids(), r.pool, ops[name], parallel)
				b.ReportMetric((outside(b, registry)-before)*1e6/float64(b.N+1), "hop-µs")
			})
		}
	}
}

func newBench(b *testing.B, r *rig) *bench {
	x := &bench{
		sign: r.generate(b, "sign@1", hsm.SignP256), mac: r.generate(b, "mac@1", hsm.MACKey), bring: r.secret(b),
	}
	x.derive, x.peer = x.bring.Enrol, x.bring.Ephemeral
	var err error
	if x.kept, err = r.pool.Import(b.Context(), x.bring); err != nil {
		b.Fatal(err)
	}
	x.direct, err = pkcs11.Open(pkcs11.Config{Module: r.hsm.Module, TokenLabel: r.hsm.Label, PIN: hsm.PIN(r.hsm.PIN), Sessions: 4})
	if err != nil {
		b.Fatal(err)
	}
	return x
}

// outside is the time of all operations so far that was not spent in a token,
// in seconds.
func outside(b *testing.B, registry *prometheus.Registry) (sum float64) {
	families, err := registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "countersign_hsm_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[1].GetValue() == "queue" {
				sum += m.GetHistogram().GetSampleSum()
			}
		}
	}
	return sum
}

// measure does b.N operations from some goroutines and reports, beside the
// time, the CPU of this process and of the workers.
func measure(b *testing.B, pids []int, token hsm.Token, op operation, parallel int) {
	op(b, token)
	me := []int{os.Getpid()}
	self, children := cpu(b, me), cpu(b, pids)
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				op(b, token)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	n := float64(b.N) * 1e3
	self, children = cpu(b, me)-self, cpu(b, pids)-children
	b.ReportMetric(float64(self)/n, "self-cpu-µs/op")
	b.ReportMetric(float64(children)/n, "worker-cpu-µs/op")
	b.ReportMetric(float64(self+children)/n, "cpu-µs/op")
}

// cpu is the CPU time of running processes in nanoseconds.
// getrusage knows children only once they have ended, and /proc in steps of
// 10 ms, hence the clock of the process (clock_getcpuclockid(3)).
func cpu(b *testing.B, pids []int) (total int64) {
	for _, pid := range pids {
		clock := int32(^pid<<3 | 2)
		var ts unix.Timespec
		if err := unix.ClockGettime(clock, &ts); err != nil {
			b.Fatal(err)
		}
		total += ts.Nano()
	}
	return total
}
