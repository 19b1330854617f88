package probe

import (
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// Sessions opened at most to find the limit, and how long that may take.
const (
	manySessions  = 1024
	quickSessions = 128
	limitTime     = 5 * time.Second
)

// another runs f in a second session.
func (p *prober) another(f func(pkcs11.SessionHandle) (string, error)) (answer string, err error) {
	s, err := p.Session()
	if err != nil {
		return "", at("C_OpenSession", err)
	}
	defer func() {
		if gone := p.CloseSession(s); err == nil {
			err = at("C_CloseSession", gone)
		}
	}()
	return f(s)
}

func (p *prober) sharing() (string, error) {
	if p.token {
		return "", errNoKey
	}
	id, err := p.value(p.p256.private, pkcs11.CKA_ID)
	if err != nil {
		return "", err
	}
	return p.another(func(s pkcs11.SessionHandle) (string, error) {
		seen, err := find(p.Module, s, []*pkcs11.Attribute{attr(pkcs11.CKA_ID, id)})
		if len(seen) > 0 {
			return yes, err
		}
		return no, err
	})
}

func (p *prober) loginForAll() (string, error) {
	return p.another(func(s pkcs11.SessionHandle) (string, error) {
		info, err := p.GetSessionInfo(s)
		if err != nil {
			return "", at("C_GetSessionInfo", err)
		}
		if info.State == pkcs11.CKS_RW_USER_FUNCTIONS {
			return yes, nil
		}
		return no, nil
	})
}

// wrongPIN needs leave: a token that checks it counts it.
func (p *prober) wrongPIN() (string, error) {
	if !p.order.WrongPIN {
		return "not tried, see --wrong-pin", nil
	}
	return p.another(func(s pkcs11.SessionHandle) (string, error) {
		err := p.Ctx.Login(s, pkcs11.CKU_USER, "0000-wrong-0000")
		if err == nil {
			return accepted, nil
		}
		return refused(err), nil
	})
}

// sessionLimit opens sessions until the token refuses one, and closes them all.
func (p *prober) sessionLimit() (err error) {
	most, end := manySessions, time.Now().Add(limitTime)
	if p.order.Quick {
		most, end = quickSessions, p.end
	}
	var open []pkcs11.SessionHandle
	defer func() {
		for _, s := range open {
			err = errors.Join(err, at("C_CloseSession", p.CloseSession(s)))
		}
	}()
	for len(open) < most && time.Now().Before(end) && p.ctx.Err() == nil {
		s, err := p.Session()
		if err != nil {
			p.found("session_limit_reached", fmt.Sprintf("%d beside one, then %v", len(open), err))
			return nil //nolint:nilerr // it is what was looked for
		}
		open = append(open, s)
	}
	p.found("session_limit_reached", fmt.Sprintf("no, %d were opened", len(open)))
	return nil
}
