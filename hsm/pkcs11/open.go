package pkcs11

import (
	"context"
	"fmt"
	"time"
	"unsafe"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// reserve is what stays free of a token's session limit: crypto11's two and
// the one that keeps the login.
const reserve = 3

// background is the context of what Open does, which ends with the process.
var background = context.Background()

// Open loads the module, selects the token, logs in once and reads its keys.
// One Open per process. A refused PIN is [hsm.ErrPIN] after exactly one
// C_Login; a module or token that is not there, or lacks a mechanism for what
// cfg.Require names, is [hsm.ErrUnavailable].
func Open(cfg Config) (*Token, error) {
	defer cfg.PIN.Zero()
	cfg.defaults()
	t, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", cfg.Module, err)
	}
	return t, nil
}

func open(cfg Config) (*Token, error) {
	t := &Token{log: cfg.Logger, keys: map[hsm.KeyID]object{}, dead: make(chan struct{}), extras: full}
	info, err := t.enter(cfg)
	if err != nil {
		return nil, err
	}
	t.label = info.Label
	if err := t.checkMechanisms(cfg.Require); err != nil {
		return nil, err
	}
	if err := t.attach(cfg, info); err != nil {
		return nil, err
	}
	if err := t.chooseWrapping(); err != nil {
		return nil, err
	}
	// A module may call a login a success that was none.
	if err := t.loggedIn(); err != nil {
		return nil, fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	_, err = t.Keys(background)
	return t, err
}

// enter initializes the module and logs in, by crypto11 where that can.
func (t *Token) enter(cfg Config) (pkcs11.TokenInfo, error) {
	if cfg.InitArgs != "" { // crypto11 has no way to hand them over
		return t.enterAlone(cfg)
	}
	info, shared, err := look(cfg)
	if err == nil {
		err = spares(info)
	}
	if err != nil {
		return info, err
	}
	if limit := info.MaxRwSessionCount; !shared || limit != 0 && limit < reserve {
		return t.enterAlone(cfg) // crypto11 panics on a token with one session
	}
	if t.keygen, err = login(cfg, info); err != nil {
		return info, err
	}
	if err := t.load(cfg); err != nil {
		return info, err
	}
	t.slot, info, err = findToken(t.ctx, cfg.TokenLabel, cfg.TokenSerial)
	return info, err
}

// enterAlone opens the module without crypto11.
func (t *Token) enterAlone(cfg Config) (pkcs11.TokenInfo, error) {
	m, err := Load(cfg)
	if err != nil {
		return pkcs11.TokenInfo{}, err
	}
	if err := m.LogIn(cfg); err != nil {
		return m.Info, err
	}
	t.ctx, t.native, t.slot = m.Ctx, m.native, m.Slot
	return m.Info, nil
}

// load opens the library for the request path.
func (t *Token) load(cfg Config) error {
	if t.ctx = pkcs11.New(cfg.Module); t.ctx == nil {
		return fmt.Errorf("loading module: %w", hsm.ErrUnavailable)
	}
	t.native = nativeOf(t.ctx)
	return nil
}

// look finds the token before crypto11 may: asked for a token that is not
// there, crypto11.Configure finalizes the module under its caller. shared tells
// whether crypto11 will see what this package does in the module: p11-kit's
// proxies have a state, with sessions and login, for each who opens them.
func look(cfg Config) (info pkcs11.TokenInfo, shared bool, err error) {
	ctx := pkcs11.New(cfg.Module)
	if ctx == nil {
		return info, false, fmt.Errorf("loading module: %w", hsm.ErrUnavailable)
	}
	defer ctx.Destroy()
	if err := ctx.Initialize(); err != nil {
		return info, false, startError("C_Initialize", err)
	}
	defer func() { _ = ctx.Finalize() }() // crypto11 wants to initialize it itself
	if _, info, err = findToken(ctx, cfg.TokenLabel, cfg.TokenSerial); err != nil {
		return info, false, err
	}
	again := pkcs11.New(cfg.Module)
	if again == nil {
		return info, false, fmt.Errorf("loading module again: %w", hsm.ErrUnavailable)
	}
	defer again.Destroy()
	if again.Initialize() == nil {
		_ = again.Finalize() // of a state of its own
		return info, false, nil
	}
	return info, true, nil
}

// findToken asks all slots and refuses two tokens that fit.
func findToken(ctx *pkcs11.Ctx, label, serial string) (slot uint, found pkcs11.TokenInfo, err error) {
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return 0, found, startError("C_GetSlotList", err)
	}
	matches := 0
	for _, s := range slots {
		info, err := ctx.GetTokenInfo(s)
		if err != nil || (label == "" && serial == "") ||
			(label != "" && info.Label != label) || (serial != "" && info.SerialNumber != serial) {
			continue
		}
		slot, found = s, info
		matches++
	}
	if matches != 1 {
		return 0, found, fmt.Errorf("%d tokens have label %q and serial %q: %w", matches, label, serial, hsm.ErrUnavailable)
	}
	return slot, found, nil
}

// spares refuses to log in where one more wrong PIN locks the token, or has (PKCS#11
// v2.40 §3.2, CK_TOKEN_INFO flags): whoever tried before did not learn the outcome.
func spares(info pkcs11.TokenInfo) error {
	if info.Flags&(pkcs11.CKF_USER_PIN_LOCKED|pkcs11.CKF_USER_PIN_FINAL_TRY) == 0 {
		return nil
	}
	return fmt.Errorf("token %s says that its PIN is locked or at its last try, log in once with the vendor's tool: %w", info.Label, hsm.ErrPIN)
}

// login lets crypto11 initialize the module and log in; its long-term session
// holds the login for all others. crypto11 panics on a token with one session.
func login(cfg Config, info pkcs11.TokenInfo) (keygen *crypto11.Context, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("configuring: %v: %w", p, hsm.ErrUnavailable)
		}
	}()
	// The string shares the bytes of the PIN, so that zeroing those leaves no
	// copy on the Go heap; crypto11 keeps the Config, hence the empty string.
	c := crypto11.Config{Path: cfg.Module, Pin: unsafe.String(unsafe.SliceData(cfg.PIN), len(cfg.PIN)), MaxSessions: 2}
	defer func() { c.Pin = "" }()
	if c.TokenSerial = info.SerialNumber; c.TokenSerial == "" {
		c.TokenLabel = info.Label
	}
	if keygen, err = crypto11.Configure(&c); err != nil {
		return nil, startError("C_Login", err)
	}
	return keygen, nil
}

// attach opens the request path. Its first session keeps the login.
func (t *Token) attach(cfg Config, info pkcs11.TokenInfo) (err error) {
	if t.login, err = t.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
		return startError("C_OpenSession", err)
	}
	n := cfg.Sessions
	if limit := info.MaxRwSessionCount; limit != 0 && limit < uint(n+reserve) {
		n = max(int(limit)-reserve, 1)
	}
	t.sessions = make(chan *session, n)
	for range n {
		t.sessions <- nil
	}
	go t.stayAlive()
	return nil
}

// startError is an error before there is a token to speak of. Whatever goes
// wrong then, only a refused PIN is more than "not available".
func startError(function string, err error) error {
	if classify(err) == stop {
		return fmt.Errorf("%s: %v: %w", function, err, hsm.ErrPIN)
	}
	return fmt.Errorf("%s: %v: %w", function, err, hsm.ErrUnavailable)
}

// since is the duration for an error message; zero before a session is there.
func (s *session) since() time.Duration {
	if s == nil {
		return 0
	}
	return time.Since(s.opened)
}
