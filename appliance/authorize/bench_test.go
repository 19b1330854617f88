package authorize_test

import "countersign/appliance/appliancetest"

const (
	door    = appliancetest.Door
	payment = appliancetest.Payment
	vault   = appliancetest.Vault
)

var (
	eur        = appliancetest.EUR
	expect     = appliancetest.Expect
	wrongProof = appliancetest.WrongProof
)
