package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// busyLimit bounds the waiting for a busy token if the context does not.
const busyLimit = 2 * time.Second

// maxDrops is how many dropped sessions one call survives.
const maxDrops = 8

// session is one PKCS#11 session. It belongs to one call at a time.
type session struct {
	handle pkcs11.SessionHandle
	opened time.Time
}

// take waits for a session. The caller gives it back with put, even if it was nil and
// could not be opened.
func (t *Token) take(ctx context.Context) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s := <-t.sessions:
		return s, nil
	default: // ctx.Done may set a timer
	}
	select {
	case s := <-t.sessions:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// put returns a session, or only its place if an error made it doubtful.
func (t *Token) put(s *session, outcome class) {
	if s != nil && !outcome.harmless() {
		if outcome != reconnect { // do not call a lost module again
			_ = t.ctx.CloseSession(s.handle)
		}
		s = nil
	}
	t.sessions <- s
}

func (t *Token) once(ctx context.Context, f func(*session) error) (age time.Duration, outcome class, err error) {
	s, err := t.take(ctx)
	if err != nil {
		return 0, waiting, err
	}
	if s == nil {
		handle, err := t.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.put(nil, fine)
			return 0, classify(err), at("C_OpenSession", err)
		}
		s = &session{handle, time.Now()}
	}
	age, outcome = s.since(), other
	defer func() { t.put(s, outcome) }()
	if err = f(s); err == nil {
		outcome = fine
	} else {
		outcome = classify(err)
	}
	return age, outcome, err
}

// run calls f with a session and reacts to the class of its error. It returns nil, a
// [*callError] or a wrapped context error.
func (t *Token) run(ctx context.Context, key hsm.KeyID, f func(*session) error) error {
	start, discarded, drops := time.Now(), false, 0
	for pause := time.Millisecond; ; pause *= 2 {
		age, outcome, err := t.once(ctx, f)
		switch {
		case outcome == fine:
			return nil
		case outcome == waiting:
			return fmt.Errorf("waiting for a session of token %s: %w", t.label, err)
		case outcome == discard && !discarded:
			discarded = true
			continue
		case outcome == dropped && drops < maxDrops && t.loggedIn() == nil:
			drops++ // a network HSM drops single sessions now and then
			continue
		case outcome == busy && time.Since(start) < busyLimit && rest(ctx, pause):
			continue
		}
		failed := &callError{err, t.label, key, age, time.Since(start), outcome}
		if outcome == reconnect || outcome == dropped {
			t.die(failed)
		}
		return failed
	}
}

// rest waits for between half of d and d. It returns false if the context ends first.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// class is how the token reacts to a return code.
type class uint8

const (
	other     class = iota // close the session, return
	reconnect              // this process cannot serve any more; another one may
	dropped                // the session is lost: open another if the login remains, else as reconnect
	refind                 // find the key by CKA_ID and try once more
	discard                // close the session and try once more
	busy                   // wait and try again within the deadline
	input                  // the caller's arguments; keep the session
	wrongKey               // the caller's key; keep the session
	stop                   // the PIN; never try again
	taken                  // the label or id of a new key; keep the session
	nonsense               // the answer is impossible; close the session, return
	lacking                // the module lacks the function for this key; keep the session
	fine                   // no error
	waiting                // the context ended before there was a session
)

// harmless reports whether a session may be used again after the class.
func (c class) harmless() bool {
	return c == fine || c == input || c == wrongKey || c == taken || c == lacking
}

// sentinel maps a class to the error that callers of package hsm see.
var sentinel = map[class]error{
	other: hsm.ErrUnavailable, reconnect: hsm.ErrUnavailable, dropped: hsm.ErrUnavailable, refind: hsm.ErrKey, discard: hsm.ErrUnavailable,
	busy: hsm.ErrUnavailable, input: hsm.ErrInput, wrongKey: hsm.ErrKey, stop: hsm.ErrPIN,
	taken: hsm.ErrExists, lacking: hsm.ErrUnsupported, nonsense: hsm.ErrGarbled,
}

// classes maps return codes (PKCS#11 v2.40 §5.1); every other code is other.
var classes = map[pkcs11.Error]class{
	pkcs11.CKR_HOST_MEMORY:                      reconnect,
	pkcs11.CKR_GENERAL_ERROR:                    reconnect,
	pkcs11.CKR_DEVICE_ERROR:                     reconnect,
	pkcs11.CKR_DEVICE_MEMORY:                    reconnect,
	pkcs11.CKR_DEVICE_REMOVED:                   reconnect,
	pkcs11.CKR_SESSION_CLOSED:                   dropped,
	pkcs11.CKR_SESSION_HANDLE_INVALID:           dropped,
	pkcs11.CKR_TOKEN_NOT_PRESENT:                reconnect,
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:             reconnect,
	pkcs11.CKR_USER_NOT_LOGGED_IN:               reconnect,
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:         reconnect,
	pkcs11.CKR_KEY_HANDLE_INVALID:               refind,
	pkcs11.CKR_OBJECT_HANDLE_INVALID:            refind,
	pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID:      refind,
	pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID:    refind,
	pkcs11.CKR_OPERATION_ACTIVE:                 discard,
	pkcs11.CKR_OPERATION_NOT_INITIALIZED:        discard,
	pkcs11.CKR_FUNCTION_FAILED:                  busy,
	pkcs11.CKR_FUNCTION_CANCELED:                busy,
	pkcs11.CKR_SESSION_COUNT:                    busy,
	pkcs11.CKR_DATA_INVALID:                     input,
	pkcs11.CKR_DATA_LEN_RANGE:                   input,
	pkcs11.CKR_MECHANISM_INVALID:                input,
	pkcs11.CKR_MECHANISM_PARAM_INVALID:          input,
	pkcs11.CKR_SIGNATURE_INVALID:                input,
	pkcs11.CKR_SIGNATURE_LEN_RANGE:              input,
	pkcs11.CKR_TEMPLATE_INCOMPLETE:              input,
	pkcs11.CKR_TEMPLATE_INCONSISTENT:            input,
	pkcs11.CKR_ENCRYPTED_DATA_INVALID:           input,
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE:         input,
	pkcs11.CKR_WRAPPED_KEY_INVALID:              input,
	pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:            input,
	pkcs11.CKR_KEY_SIZE_RANGE:                   wrongKey,
	pkcs11.CKR_WRAPPING_KEY_SIZE_RANGE:          wrongKey,
	pkcs11.CKR_WRAPPING_KEY_TYPE_INCONSISTENT:   wrongKey,
	pkcs11.CKR_UNWRAPPING_KEY_SIZE_RANGE:        wrongKey,
	pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT: wrongKey,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:            wrongKey,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED:       wrongKey,
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:           lacking,
	pkcs11.CKR_KEY_NOT_WRAPPABLE:                lacking,
	pkcs11.CKR_PIN_INCORRECT:                    stop,
	pkcs11.CKR_PIN_EXPIRED:                      stop,
	pkcs11.CKR_PIN_LOCKED:                       stop,
	pkcs11.CKR_PIN_INVALID:                      stop,
	pkcs11.CKR_PIN_LEN_RANGE:                    stop,
}

func classOf(code pkcs11.Error) class {
	if code >= pkcs11.CKR_VENDOR_DEFINED {
		return reconnect
	}
	return classes[code]
}

// errTaken: the label or the id of a new key is already on the token.
var errTaken = errors.New("label or id is taken")

// errWrapped: a wrapped key or sealed copy does not open, or opens to something else.
var errWrapped = errors.New("not what was sealed or wrapped")

// errBroken means that the module blames an input that is good.
var errBroken = errors.New("the module blames a good input")

// errLacking: the module supports the operation, but not for keys of this kind.
var errLacking = errors.New("not for keys of this kind")

// errUnknown: the number of keys with the id is not one.
var errUnknown = errors.New("not one key has this id")

// errShort: a function succeeded with a signature or secret of the wrong length.
var errShort = errors.New("answer of the wrong length")

// errDiffers: a function succeeded with a key that is not the one that was wrapped.
var errDiffers = errors.New("the key gives another MAC than the one that was wrapped")

// failure is the error of one PKCS#11 function.
type failure struct {
	function string
	cause    error
}

func (f *failure) Unwrap() error { return f.cause }

func (f *failure) Error() string { return f.function + ": " + f.cause.Error() }

// at adds the name of the function to an error; nil stays nil.
func at(function string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{function, err}
}

// codeOf finds the return code in an error. crypto11 wraps with an errors package that has
// Cause but no Unwrap.
func codeOf(err error) (pkcs11.Error, bool) {
	for err != nil {
		switch e := err.(type) {
		case pkcs11.Error:
			return e, true
		case interface{ Cause() error }:
			err = e.Cause()
		default:
			err = errors.Unwrap(err)
		}
	}
	return 0, false
}

func classify(err error) class {
	switch {
	case errors.Is(err, errTaken):
		return taken
	case errors.Is(err, errWrapped):
		return input
	case errors.Is(err, errBroken):
		return other
	case errors.Is(err, errShort), errors.Is(err, errDiffers):
		return nonsense
	case errors.Is(err, errLacking):
		return lacking
	case errors.Is(err, errUnknown):
		return wrongKey
	}
	code, ok := codeOf(err)
	if !ok {
		return other
	}
	return classOf(code)
}

// unsupported reports whether a template has an attribute that the module does not accept.
func unsupported(err error) bool {
	code, _ := codeOf(err)
	return code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || code == pkcs11.CKR_ATTRIBUTE_VALUE_INVALID ||
		code == pkcs11.CKR_TEMPLATE_INCONSISTENT || code == pkcs11.CKR_ATTRIBUTE_READ_ONLY
}

// callError is the error that callers see: the function, token, key and times. It wraps
// the sentinel of its class and none of the module's errors.
type callError struct {
	cause         error
	token         string
	key           hsm.KeyID
	age, duration time.Duration // of the session, of the call
	class         class
}

func (e *callError) Error() string {
	where := "token " + e.token
	if e.key != (hsm.KeyID{}) {
		where += ", key " + e.key.String()
	}
	return fmt.Sprintf("%s, session %s old, after %s: %v: %v", where,
		e.age.Round(time.Millisecond), e.duration.Round(time.Microsecond), e.cause, e.Unwrap())
}

func (e *callError) Unwrap() error { return sentinel[e.class] }
