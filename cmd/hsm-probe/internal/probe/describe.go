package probe

import (
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	ours "countersign/hsm/pkcs11"
)

// flagNames are the CK_TOKEN_INFO flags that matter to who uses the token.
var flagNames = []struct {
	flag uint
	name string
}{
	{pkcs11.CKF_RNG, "rng"},
	{pkcs11.CKF_WRITE_PROTECTED, "write-protected"},
	{pkcs11.CKF_LOGIN_REQUIRED, "login-required"},
	{pkcs11.CKF_USER_PIN_INITIALIZED, "user-pin-initialized"},
	{pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH, "protected-authentication-path"},
	{pkcs11.CKF_TOKEN_INITIALIZED, "token-initialized"},
	{pkcs11.CKF_USER_PIN_COUNT_LOW, "user-pin-count-low"},
	{pkcs11.CKF_USER_PIN_FINAL_TRY, "user-pin-final-try"},
	{pkcs11.CKF_USER_PIN_LOCKED, "user-pin-locked"},
	{pkcs11.CKF_USER_PIN_TO_BE_CHANGED, "user-pin-to-be-changed"},
}

// List tells of a module what can be seen without a login.
func List(cfg ours.Config) (report.Module, error) {
	raw, err := ours.Load(cfg)
	if err != nil {
		return report.Module{}, err
	}
	m := report.Module{Tokens: []report.Token{}}
	if m.Library, err = library(raw, cfg.Module); err != nil {
		return m, err
	}
	slots, err := raw.GetSlotList(true)
	if err != nil {
		return m, fmt.Errorf("C_GetSlotList: %v: %w", err, hsm.ErrUnavailable)
	}
	for _, s := range slots {
		if info, err := raw.GetTokenInfo(s); err == nil { // one bad slot hides no other
			m.Tokens = append(m.Tokens, describe(raw, s, info))
		}
	}
	return m, nil
}

func (p *prober) describe(module string) (err error) {
	if p.report.Library, err = library(p.Module, module); err != nil {
		return err
	}
	list, err := p.GetMechanismList(p.Slot)
	if err != nil {
		return fmt.Errorf("C_GetMechanismList: %v: %w", err, hsm.ErrUnavailable)
	}
	for _, m := range list {
		p.listed = append(p.listed, m.Mechanism)
	}
	p.report.Token = describe(p.Module, p.Slot, p.Info)
	p.report.Token.Mechanisms = len(list)
	return nil
}

func library(raw *ours.Module, path string) (report.Library, error) {
	info, err := raw.GetInfo()
	if err != nil {
		return report.Library{}, fmt.Errorf("C_GetInfo: %v: %w", err, hsm.ErrUnavailable)
	}
	return report.Library{
		Path: path, Description: info.LibraryDescription, Manufacturer: info.ManufacturerID,
		Version: version(info.LibraryVersion), Cryptoki: version(info.CryptokiVersion),
	}, nil
}

func describe(raw *ours.Module, slot uint, info pkcs11.TokenInfo) report.Token {
	t := report.Token{
		Slot: slot, Label: info.Label, Serial: info.SerialNumber, Manufacturer: info.ManufacturerID, Model: info.Model,
		Hardware: version(info.HardwareVersion), Firmware: version(info.FirmwareVersion), Flags: []string{},
		MaxSessions: known(info.MaxSessionCount), MaxRWSessions: known(info.MaxRwSessionCount),
	}
	for _, f := range flagNames {
		if info.Flags&f.flag != 0 {
			t.Flags = append(t.Flags, f.name)
		}
	}
	if s, err := raw.GetSlotInfo(slot); err == nil { // it only tells more
		t.SlotDescription, t.SlotMaker = s.SlotDescription, s.ManufacturerID
	}
	return t
}

func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// known is a limit, or 0 where the token says CK_EFFECTIVELY_INFINITE or
// CK_UNAVAILABLE_INFORMATION.
func known(limit uint) uint {
	if limit == ^uint(0) {
		return 0
	}
	return limit
}
