// Package pkcs11 implements [hsm.Token] on a vendor's PKCS#11 module. It runs in an
// hsm-worker, one token per process, because a PKCS#11 call cannot be cancelled and a
// module that lost its token recovers at best in a new process. A running
// worker never calls C_Logout, C_CloseAllSessions or C_Finalize.
package pkcs11

import (
	"runtime"
	"sync"
	"time"

	"github.com/ThalesIgnite/crypto11"
	"github.com/hashicorp/go-hclog"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// keepAlive is shorter than the idle time after which a network HSM drops a
// session, 15 seconds at the strictest known.
const keepAlive = 10 * time.Second

// Config says which token to open. TokenLabel, TokenSerial or both select it;
// slot numbers move and are not used.
type Config struct {
	Module      string       // path of the PKCS#11 module
	TokenLabel  string       // CK_TOKEN_INFO.label, or empty
	TokenSerial string       // CK_TOKEN_INFO.serialNumber, or empty
	PIN         hsm.PIN      // of CKU_USER; Open erases it
	Sessions    int          // working sessions, default the number of cores
	InitArgs    string       // pReserved of C_Initialize, or empty for none
	HostCheck   bool         // new wrap keys are HMAC keys, and passwords are checked in the memory of this process
	Require     []hsm.Usage  // Open fails if the module cannot have keys of these usages
	Logger      hclog.Logger // default none
}

// Token implements [hsm.Token] on a module. A call waits for a session until
// its context ends; once the module has been entered it runs to its end, which
// is why the parent process keeps the deadline.
type Token struct {
	ctx      *pkcs11.Ctx
	native   native
	keygen   *crypto11.Context // nil where crypto11 cannot open the module
	log      hclog.Logger
	label    string
	slot     uint
	login    pkcs11.SessionHandle // holds the login, and is not used otherwise
	sessions chan *session        // idle ones; nil stands for one to be opened
	have     available
	listsPad bool // have has CKM_AES_KEY_WRAP_PAD because the module lists it
	ways     ways
	refused  map[string]string // mechanisms that work in no way, and why
	missing  []string
	// hostCheck: new wrap keys are HMAC keys, see hostcheck.go.
	hostCheck bool

	changing sync.Mutex              // one change of the token at a time, with its checks; guards the next three
	settled  optional                // attributes that the module keeps, as far as trials have shown
	optional optional                // attributes of the key that is being made
	history  map[uint]hsm.Attributes // by class, see keptHistory; nil if not tried yet

	mu   sync.RWMutex // guards keys
	keys map[hsm.KeyID]object

	halves halves

	dying sync.Once
	dead  chan struct{}
}

// Dead returns a channel that is closed when the token has lost its module, device or
// login. The process should end then; a new one may succeed.
func (t *Token) Dead() <-chan struct{} { return t.dead }

// Notices returns the mechanisms that the module lacks and serving does not need.
func (t *Token) Notices() []string { return t.missing }

func (t *Token) die(cause error) {
	t.dying.Do(func() {
		t.log.Error("token lost", "token", t.label, "error", cause)
		close(t.dead)
	})
}

// stayAlive keeps the login session busy for the life of the process, and notices a lost
// login when there is no request to notice it.
func (t *Token) stayAlive() {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		select {
		case <-t.dead:
			return
		case <-tick.C:
		}
		if err := t.loggedIn(); err != nil {
			t.die(err)
			return
		}
	}
}

// loggedIn returns an error if the session that holds the login has lost it. It ignores
// errors that say nothing about the login.
func (t *Token) loggedIn() error {
	info, err := t.ctx.GetSessionInfo(t.login)
	if err == nil && info.State != pkcs11.CKS_RW_USER_FUNCTIONS {
		err = pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)
	}
	if c := classify(err); err != nil && (c == reconnect || c == dropped) {
		return at("C_GetSessionInfo", err)
	}
	return nil
}

func (c *Config) defaults() {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Sessions <= 0 {
		c.Sessions = runtime.NumCPU()
	}
}
