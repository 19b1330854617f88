package config

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// least is the smallest relay configuration that loads.
const least = `accept = [100]
[appliance]
url = "https://host:8443/"
ca = "/ca.pem"
[[link]]
type = "wire"
listen = "tcp:127.0.0.1:0"
`

func TestRelay(t *testing.T) {
	path := write(t, "relay.toml", "strict = true\n"+least+`
[[link]]
type = "wire"
listen = "unix:link.sock"
class = "nfc"
[order]
source = "static"
[order.static]
service = 200
amount_minor = 1250
currency = "EUR"
text = "Tea"
[hook]
command = ["./hooks/open", "--now"]
`)
	r, err := LoadRelay(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if got, want := r.Links[1].Listen.String(), "unix:"+dir+"/link.sock"; got != want {
		t.Errorf("second link listens on %s, want %s", got, want)
	}
	if !r.Strict || r.Order.ApprovalWait.Duration != 5*time.Minute {
		t.Errorf("strict %v, approval_wait %v", r.Strict, r.Order.ApprovalWait)
	}
	if r.Links[0].Class != "wire" || r.Links[1].Class != "nfc" {
		t.Errorf("classes %q, %q", r.Links[0].Class, r.Links[1].Class)
	}
	if want := (StaticOrder{Service: 200, AmountMinor: 1250, Currency: "EUR", Text: "Tea"}); r.Order.Static != want {
		t.Errorf("order %+v", r.Order.Static)
	}
	if r.Hook.Command[0] != dir+"/hooks/open" || r.Hook.Command[1] != "--now" {
		t.Errorf("hook %q", r.Hook.Command)
	}
	if got := command(dir, "logger"); got != "logger" {
		t.Errorf("a program of PATH became %s", got)
	}
}

func TestRelayRefuses(t *testing.T) {
	change := func(old, with string) string { return strings.Replace(least, old, with, 1) }
	for _, tc := range []struct{ name, text, want string }{
		{"no url", change("https://host:8443/", ""), "relay.toml:3: appliance.url: missing"},
		{"plain http", change("https:", "http:"), `relay.toml:3: appliance.url: "http://host:8443/": want https://HOST:PORT`},
		{"url with a path", change("8443/", "8443/v1"), "want https://HOST:PORT and nothing behind it"},
		{"url with a password", change("https://", "https://a:b@"), "want https://HOST:PORT and nothing behind it"},
		{"no host", change("https://host:8443/", "https://:8443"), "want https://HOST:PORT"},
		{"no ca", change("/ca.pem", ""), "relay.toml:4: appliance.ca: missing"},
		{"no link", least[:strings.Index(least, "[[link]]")], "relay.toml: link: no [[link]]: no phone could reach this device"},
		{"link type", change("wire", "smoke"), `relay.toml:6: link.type: "smoke": want wire`},
		{"link class", least + "class = \"rfc1149\"\n", `relay.toml:8: link.class: "rfc1149": want wire, qr, sound, nfc, ble`},
		{"link listen", change("tcp:127", "udp:127"), `relay.toml:7: link.listen: address "udp:127.0.0.1:0": want tcp:HOST:PORT or unix:PATH`},
		{"no listen", change("listen = \"tcp:127.0.0.1:0\"\n", ""), "relay.toml:5: link.listen: missing"},
		{"second of two links", least + "[[link]]\ntype = \"qr\"\nlisten = \"tcp:127.0.0.1:0\"\n", `relay.toml:9: link.type: "qr": want wire`},
		{"links alike", change(":0", ":7") + "[[link]]\ntype = \"wire\"\nlisten = \"tcp:127.0.0.1:7\"\n", "relay.toml:10: link.listen: tcp:127.0.0.1:7 is the address of link 1 too"},
		{"nothing accepted", change("[100]", "[]"), `relay.toml:1: accept: empty: with order.source = "accept"`},
		{"reserved service", change("[100]", "[100, 15]"), "relay.toml:1: accept: service 15: want 16 or more"},
		{"service twice", change("[100]", "[100, 100]"), "relay.toml:1: accept: service 100 is there twice"},
		{"negative service", change("[100]", "[-1]"), "relay.toml:1: accept: service -1: want 16 or more"},
		{"too many services", change("[100]", "["+numbers(100, 354)+"]"), "relay.toml:1: accept: 254 services: at most 253 are possible"},
		{"strict as a word", "strict = \"yes\"\n" + least, "relay.toml:1: strict: "},
		{"approval wait", least + "[order]\napproval_wait = \"9s\"\n", `relay.toml:9: order.approval_wait: "9s": want 10s to 1h0m0s`},
		{"floor 0", "floor = 0\n" + least, "relay.toml:1: floor: 0: want 1 to 4"},
		{"floor 5", "floor = 5\n" + least, "relay.toml:1: floor: 5: want 1 to 4"},
		{"floor -1", "floor = -1\n" + least, "relay.toml:1: floor: "},
		{"floor 257", "floor = 257\n" + least, "relay.toml:1: floor: "},
		{"order source", least + "[order]\nsource = \"oracle\"\n", `relay.toml:9: order.source: "oracle": want accept, static, socket`},
		{"order without socket", least + "[order]\nsource = \"socket\"\n", "relay.toml:8: order.socket: the path is missing"},
		{"static order without service", least + "[order]\nsource = \"static\"\n", "relay.toml:8: order.static.service: service 0: want 16 or more"},
		{"static amount alone", static("amount_minor = 1"), "relay.toml:10: order.static.currency: missing beside amount_minor"},
		{"static currency", static("currency = \"euro\""), `relay.toml:12: order.static.currency: "euro": want three letters A to Z`},
		{"static amount too large", static("amount_minor = 1000000000000000\ncurrency = \"EUR\""), "relay.toml:12: order.static.amount_minor: 1000000000000000: want 0 or more and less than 10^15"},
		{"static amount negative", static("amount_minor = -5\ncurrency = \"EUR\""), "order.static.amount_minor: -5: want 0 or more"},
		{"static text", static("text = \"" + strings.Repeat("é", 23) + "\""), "has 46 bytes, at most 44 are possible"},
		{"empty hook", least + "[hook]\ncommand = [\"\"]\n", "relay.toml:9: hook.command: the program is missing"},
		{"hook as a string", least + "[hook]\ncommand = \"rm -rf\"\n", "relay.toml:9: hook.command: "},
		{"hook environment with a value", least + "[hook]\nenvironment = [\"PORT=7\"]\n", "relay.toml:9: hook.environment: has a value: write the name only"},
		{"hook environment", least + "[hook]\nenvironment = [\"7UP\"]\n", `relay.toml:9: hook.environment: "7UP" is not the name of an environment variable`},
		{"hook environment twice", least + "[hook]\nenvironment = [\"A\", \"A\"]\n", "hook.environment: A is named twice"},
		{"hook timeout", least + "[hook]\ntimeout = \"1ms\"\n", `relay.toml:9: hook.timeout: "1ms": want 100ms to 10m0s`},
		{"ops on the network", least + "[ops]\nlisten = \"[::]:1\"\n", `relay.toml:9: ops.listen: "[::]:1": want a loopback address`},
		{"unknown key in a link", least + "clas = \"nfc\"\n", "relay.toml:8: unknown key link.clas (did you mean link.class?)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := write(t, "relay.toml", tc.text)
			r, err := LoadRelay(path)
			if got := said(t, path, r != nil, err); !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
				t.Errorf("got:\n%s\nwant one line with:\n%s", got, tc.want)
			}
		})
	}
}

func numbers(from, to int) string {
	var list []string
	for n := from; n < to; n++ {
		list = append(list, strconv.Itoa(n))
	}
	return strings.Join(list, ", ")
}

func static(rest string) string {
	return least + "[order]\nsource = \"static\"\n[order.static]\nservice = 16\n" + rest + "\n"
}

func TestAddress(t *testing.T) {
	for _, tc := range []struct{ in, network, target string }{
		{"tcp:127.0.0.1:80", "tcp", "127.0.0.1:80"},
		{"tcp:[::1]:0", "tcp", "[::1]:0"},
		{"tcp::7", "tcp", ":7"},
		{"unix:/run/a:b.sock", "unix", "/run/a:b.sock"},
		{"unix:" + strings.Repeat("p", 107), "unix", strings.Repeat("p", 107)},
	} {
		a, err := ParseAddress(tc.in)
		if err != nil || a.Network() != tc.network || a.Target() != tc.target || a.String() != tc.in {
			t.Errorf("%q: %q %q, %v", tc.in, a.Network(), a.Target(), err)
		}
	}
	for _, bad := range []string{
		"", "tcp", "tcp:", "tcp:host", "tcp:host:", "tcp:host:http", "tcp:host:-1", "tcp:host:65536", "tcp:::1:80",
		"unix", "unix:", "unix:@abstract", "unix:a\x00b", "unix:" + strings.Repeat("p", 108), "https://host", "/run/sock", "TCP:host:1",
	} {
		a := Address{network: "tcp", target: "kept:1"}
		if err := a.Set(bad); err == nil || a.String() != "tcp:kept:1" {
			t.Errorf("%q: %v, address %s", bad, err, a)
		}
	}
	if (Address{}).String() != "" || !(Address{}).IsZero() {
		t.Error("the zero address is something")
	}
}
