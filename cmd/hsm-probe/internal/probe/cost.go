package probe

import (
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"countersign/cmd/hsm-probe/internal/report"
)

// costTime is how long one cost is measured.
func (p *prober) costTime() time.Duration {
	if p.order.Quick {
		return 100 * time.Millisecond
	}
	return 500 * time.Millisecond
}

func (p *prober) costs() error {
	if err := p.onToken(); err != nil {
		return err
	}
	if err := p.findCosts(); err != nil {
		return err
	}
	return p.signCosts()
}

// onToken puts the keys that are measured where the appliance's are: a token object
// may cost a file or a lock that a session object does not.
func (p *prober) onToken() error {
	if p.p256.private == 0 || p.derive.private == 0 {
		return errNoKey
	}
	for _, k := range []*pair{&p.p256, &p.derive} {
		h, err := p.CopyObject(p.main, k.private, p.draft(true))
		if err != nil {
			p.found("measured_keys", "session objects: "+refused(err))
			return nil //nolint:nilerr // what is there is measured
		}
		p.keep(h)
		k.private = h
	}
	p.found("measured_keys", "token objects")
	return nil
}

// findCosts looks for one key by its id, as is done once for each key, and for all
// objects.
func (p *prober) findCosts() error {
	id, err := p.value(p.p256.private, pkcs11.CKA_ID)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name     string
		template []*pkcs11.Attribute
	}{
		{"find_by_id", []*pkcs11.Attribute{attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_TOKEN, true)}},
		{"find_all", []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true)}},
	} {
		start, n, seen := time.Now(), 0, 0
		for time.Since(start) < p.costTime()/2 {
			all, err := find(p.Module, p.main, c.template)
			if err != nil {
				return err
			}
			n, seen = n+1, len(all)
		}
		p.cost(c.name, report.Each(time.Since(start), n), fmt.Sprintf("%d of the objects on the token", seen))
	}
	return nil
}

// signCosts takes a signature apart, and sees what asking for its length first adds.
func (p *prober) signCosts() error {
	one := loop{session: p.main, key: p.p256.private, mechanism: pkcs11.CKM_ECDSA, input: make([]byte, 32), size: 64}
	plain, took, err := run(p.Module, one, p.costTime())
	if err != nil {
		return at("C_Sign", err)
	}
	total := took.init + took.call
	share := 100 * float64(took.init) / float64(max(total, 1))
	p.cost("sign_init", report.Each(took.init, plain.Calls), fmt.Sprintf("%.0f %% of a P-256 signature", share))
	p.cost("sign", report.Each(took.call, plain.Calls), "with a buffer of the known length")
	one.query = true
	asked, took, err := run(p.Module, one, p.costTime())
	if err != nil {
		p.found("length_query", refused(err))
		return nil //nolint:nilerr // it is an answer
	}
	p.cost("sign_length_query", report.Each(took.query, asked.Calls), "C_Sign with no buffer, which nothing here calls")
	return nil
}

func (p *prober) cost(name string, us float64, note string) {
	p.report.Costs = append(p.report.Costs, report.Cost{Name: name, US: us, Note: note})
}
