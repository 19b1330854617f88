package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/pkcs11"
	pkgerrors "github.com/pkg/errors"

	"countersign/hsm"
)

func TestClasses(t *testing.T) {
	for codes, want := range map[string]struct {
		class    class
		sentinel error
	}{
		"2 5 30 31 32 e0 e1 101 190 80000000 80000001": {reconnect, hsm.ErrUnavailable},
		"b0 b3":                                 {dropped, hsm.ErrUnavailable},
		"60 82 f0 113":                          {refind, hsm.ErrKey},
		"90 91":                                 {discard, hsm.ErrUnavailable},
		"6 50 b1":                               {busy, hsm.ErrUnavailable},
		"20 21 40 41 70 71 c0 c1 d0 d1 110 112": {input, hsm.ErrInput},
		"62 63 68 f1 f2 114 115":                {wrongKey, hsm.ErrKey},
		"a0 a3 a4":                              {stop, hsm.ErrPIN},
		"54 69":                                 {lacking, hsm.ErrUnsupported},
		"7f 1ff":                                {other, hsm.ErrUnavailable},
	} {
		for _, text := range strings.Fields(codes) {
			var code uint
			if _, err := fmt.Sscanf(text, "%x", &code); err != nil {
				t.Fatal(err)
			}
			err := at("C_Sign", pkgerrors.WithMessage(pkcs11.Error(code), "crypto11"))
			if got := classify(err); got != want.class || sentinel[got] != want.sentinel {
				t.Errorf("%s is in class %d, want %d", text, got, want.class)
			}
		}
	}
}

// idle is a token without a module, enough for the decisions of run.
func idle() *Token {
	t := &Token{label: "test", log: hclog.NewNullLogger(), sessions: make(chan *session, 1), dead: make(chan struct{}), keys: map[hsm.KeyID]object{}}
	t.ctx = shared.ctx
	t.slot, t.login = shared.slot, shared.login
	t.sessions <- nil
	return t
}

func TestReactions(t *testing.T) {
	for _, c := range []struct {
		name  string
		codes []uint // of the first calls, then success
		calls int
		want  error
		dead  bool
	}{
		{"reconnect", []uint{0x32}, 1, hsm.ErrUnavailable, true},
		{"dropped", []uint{0xb3, 0xb0, 0xb3, 0xb3, 0xb3}, 6, nil, false},
		{"dropped for ever", []uint{0xb3, 0xb3, 0xb3, 0xb3, 0xb3, 0xb3, 0xb3, 0xb3, 0xb3}, 9, hsm.ErrUnavailable, true},
		{"discard once", []uint{0x90}, 2, nil, false},
		{"discard twice", []uint{0x90, 0x91}, 2, hsm.ErrUnavailable, false},
		{"busy", []uint{0x06, 0xb1, 0x50}, 4, nil, false},
		{"input", []uint{0x21}, 1, hsm.ErrInput, false},
		{"key", []uint{0x68}, 1, hsm.ErrKey, false},
		{"PIN", []uint{0xa4}, 1, hsm.ErrPIN, false},
		{"unknown", []uint{0x7f}, 1, hsm.ErrUnavailable, false},
		{"lacking", []uint{0x54}, 1, hsm.ErrUnsupported, false},
		{"host memory", []uint{0x02}, 1, hsm.ErrUnavailable, true},
		{"vendor", []uint{0x80000001}, 1, hsm.ErrUnavailable, true},
		{"stale handle", []uint{0x60}, 1, hsm.ErrKey, false},
		{"mechanism", []uint{0x70}, 1, hsm.ErrInput, false},
		{"busy, then input", []uint{0xb1, 0x71}, 2, hsm.ErrInput, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			token, calls := idle(), 0
			err := token.run(t.Context(), hsm.KeyID{1}, func(*session) error {
				calls++
				if calls > len(c.codes) {
					return nil
				}
				return at("C_Sign", pkcs11.Error(c.codes[calls-1]))
			})
			if calls != c.calls || !errors.Is(err, c.want) {
				t.Errorf("%d calls, %v; want %d, %v", calls, err, c.calls, c.want)
			}
			select {
			case <-token.Dead():
				if !c.dead {
					t.Error("token is dead")
				}
			default:
				if c.dead {
					t.Error("token is not dead")
				}
			}
			if len(token.sessions) != 1 {
				t.Errorf("%d sessions in the pool, want 1", len(token.sessions))
			}
		})
	}
}

func TestBusyEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	err := idle().run(ctx, hsm.KeyID{}, func(*session) error { return at("C_Sign", pkcs11.Error(pkcs11.CKR_SESSION_COUNT)) })
	if !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestErrorText(t *testing.T) {
	err := idle().run(t.Context(), hsm.KeyID{0xab}, func(*session) error { return at("C_SignInit", pkcs11.Error(pkcs11.CKR_KEY_SIZE_RANGE)) })
	for _, want := range []string{"C_SignInit", "token test", "key ab00", "CKR_KEY_SIZE_RANGE", "after", hsm.ErrKey.Error()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
}
