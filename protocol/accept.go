package protocol

import (
	"fmt"
	"time"
)

// Expectation is what C asked for and what its own settings say, to hold a P2
// against before its user sees it.
type Expectation struct {
	// Service is that of P1.
	Service Service
	// Requested is the level of P1.
	Requested Level
	// Floor is C's own least level for a service; nil is 1 for each.
	Floor func(Service) Level
	// Amount and Text are what C proposed, nil or "" where it did not.
	Amount *Amount
	Text   string
}

// Acceptable tells whether C may show this P2 and let its user sign it
// (PROTOCOL.md §4). The error form is its own code, as [Retry] if it says when.
// Otherwise it is [CodeFormat] for keys of co-approval in the wrong place,
// [CodeLevel] for a level or factors that do not do, [CodePolicy] for an amount or
// text that is not C's, or a currency that C does not know.
func (p P2) Acceptable(want Expectation) error {
	if p.Code != 0 {
		return p.refusal()
	}
	if (want.Service == ServiceCoApproval) != (p.FirstStatement != nil) {
		return formatError("P2: a first statement goes with service 3 and only there")
	}
	if err := p.checkLevel(want); err != nil {
		return err
	}
	return p.checkContent(want)
}

func (p P2) refusal() error {
	if p.Retry == nil {
		return p.Code
	}
	return Retry{Code: p.Code, After: seconds(*p.Retry)}
}

// seconds does not overflow.
func seconds(n uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Second)
	return time.Duration(min(n, most)) * time.Second
}

func (p P2) checkLevel(want Expectation) error {
	service := want.Service
	if service == ServiceCoApproval {
		service = *p.FirstService
	}
	floor := Level(1)
	if want.Floor != nil {
		floor = want.Floor(service)
	}
	if least := max(floor, want.Requested); p.Level < least {
		return fmt.Errorf("level %v, want %v or more: %w", p.Level, least, CodeLevel)
	}
	needed, ok := p.Level.Factors()
	if !ok || !p.Factors.Has(needed) || !knownFactors.Has(p.Factors) {
		return fmt.Errorf("level %v with factors %v: %w", p.Level, p.Factors, CodeLevel)
	}
	return nil
}

func (p P2) checkContent(want Expectation) error {
	if p.Amount != nil {
		if _, known := MinorDigits(p.Amount.Currency); !known {
			return fmt.Errorf("unknown currency %v: %w", p.Amount.Currency, CodePolicy)
		}
	}
	if want.Amount != nil && (p.Amount == nil || *p.Amount != *want.Amount) {
		return fmt.Errorf("amount %v, proposed %v: %w", p.Amount, want.Amount, CodePolicy)
	}
	if want.Text != "" && p.Text != want.Text {
		return fmt.Errorf("text %q, proposed %q: %w", p.Text, want.Text, CodePolicy)
	}
	return nil
}
