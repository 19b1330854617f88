package pkcs11

import (
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// class says how the token reacts to a return code.
type class uint8

const (
	other     class = iota // close the session, return
	reconnect              // this process is of no more use; another one may be
	dropped                // the session is gone: another one if the login is still there, else as reconnect
	refind                 // resolve the key by CKA_ID, try once more
	discard                // close the session, try once more
	busy                   // wait and try again inside the deadline
	input                  // the caller's arguments; keep the session
	wrongKey               // the caller's key; keep the session
	stop                   // the PIN; never try again
	taken                  // the label or id of a new key; keep the session
	nonsense               // the answer cannot be right; close the session, return
	lacking                // a function the module has not, for this key; keep the session
	fine                   // no error
	waiting                // the context ended before there was a session
)

// harmless tells that a session may be used again after the class.
func (c class) harmless() bool {
	return c == fine || c == input || c == wrongKey || c == taken || c == lacking
}

// sentinel is what a caller of package hsm sees of a class.
var sentinel = map[class]error{
	other: hsm.ErrUnavailable, reconnect: hsm.ErrUnavailable, dropped: hsm.ErrUnavailable, refind: hsm.ErrKey, discard: hsm.ErrUnavailable,
	busy: hsm.ErrUnavailable, input: hsm.ErrInput, wrongKey: hsm.ErrKey, stop: hsm.ErrPIN,
	taken: hsm.ErrExists, lacking: hsm.ErrUnsupported, nonsense: hsm.ErrGarbled,
}

// classes holds every return code with a class of its own (PKCS#11 v2.40 §5.1).
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

// errTaken: the label or the id of a new key is on the token already.
var errTaken = errors.New("label or id is taken")

// errWrapped: what was to be opened was not sealed or wrapped for this, or is
// not what it was said to be.
var errWrapped = errors.New("not what was sealed or wrapped")

// errLacking: the module can do it, but not for keys of this kind.
var errLacking = errors.New("not for keys of this kind")

// errUnknown: there is not exactly one key of that id.
var errUnknown = errors.New("not one key has this id")

// errShort: the module called a signature or secret of the wrong length a success.
var errShort = errors.New("answer of the wrong length")

// failure is the error of one PKCS#11 function, before it is known for whom.
type failure struct {
	function string
	cause    error
}

func (f *failure) Unwrap() error { return f.cause }

func (f *failure) Error() string { return f.function + ": " + f.cause.Error() }

// at names the function err comes from; nil stays nil.
func at(function string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{function, err}
}

// codeOf digs out the return code. crypto11 wraps with an errors package that
// has Cause but no Unwrap.
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
	case errors.Is(err, errShort):
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

// unsupported tells that a template has an attribute the module does not know.
func unsupported(err error) bool {
	code, _ := codeOf(err)
	return code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || code == pkcs11.CKR_ATTRIBUTE_VALUE_INVALID ||
		code == pkcs11.CKR_TEMPLATE_INCONSISTENT || code == pkcs11.CKR_ATTRIBUTE_READ_ONLY
}

// callError is what leaves the package: what was called, where, for how long.
// It wraps the sentinel of its class and nothing of the module.
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
