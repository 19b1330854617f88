package config

import (
	"fmt"

	"countersign/hsm/uri"
)

// name takes the token and its module from hsm.uri. A key beside it must say the
// same; of what neither says, the default stays, but for the label: a URI without
// one fits every label.
func (a *Appliance) name(defined func(key ...string) bool) []Problem {
	if a.HSM.URI == "" {
		return nil
	}
	u, err := uri.Parse(a.HSM.URI)
	if err != nil {
		return []Problem{{Key: "hsm.uri", Text: err.Error()}}
	}
	if !defined("hsm", "token_label") {
		a.HSM.TokenLabel = ""
	}
	var problems []Problem
	for _, part := range []struct {
		attribute, key string
		into           *string
	}{
		{uri.ModulePath, "module", &a.HSM.Module},
		{uri.Token, "token_label", &a.HSM.TokenLabel},
		{uri.Serial, "token_serial", &a.HSM.TokenSerial},
	} {
		value, ok := u.Get(part.attribute)
		switch {
		case !ok:
		case defined("hsm", part.key) && *part.into != value:
			problems = append(problems, Problem{
				Key: "hsm." + part.key, Text: fmt.Sprintf("%q here and %q as %s in hsm.uri: want one of them", *part.into, value, part.attribute),
			})
		default:
			*part.into = value
		}
	}
	return append(problems, unused(u)...)
}

// unused refuses attributes that would have no effect.
func unused(u uri.URI) (problems []Problem) {
	for _, a := range u.Path() {
		if a.Name != uri.Token && a.Name != uri.Serial {
			problems = append(problems, Problem{Key: "hsm.uri", Text: a.Name + " selects nothing here: want token, serial and module-path"})
		}
	}
	for _, name := range []string{"pin-source", "module-name"} {
		if _, ok := u.Get(name); ok {
			problems = append(problems, Problem{Key: "hsm.uri", Text: name + " is not used here: the PIN is hsm.pin, the module is module-path"})
		}
	}
	return problems
}
