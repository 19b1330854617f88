package config

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"
)

// Appliance is countersignd's config.toml. Paths are absolute after loading. The sample file,
// config.toml at the root of the repository, explains each key.
type Appliance struct {
	StateDir string      `toml:"state_dir"`
	HSM      HSM         `toml:"hsm"`
	Store    Store       `toml:"store"`
	API      API         `toml:"api"`
	Admin    Admin       `toml:"admin"`
	Ops      Ops         `toml:"ops"`
	Trust    Trust       `toml:"trust"`
	Keys     KeySchedule `toml:"keys"`
	Backup   Backup      `toml:"backup"`
	UV       UV          `toml:"uv"`
	Log      Log         `toml:"log"`
}

// HSM names the PKCS#11 module, the token and the worker processes.
type HSM struct {
	URI          string   `toml:"uri"` // in place of module, token_label and token_serial
	Module       string   `toml:"module"`
	TokenLabel   string   `toml:"token_label"`
	TokenSerial  string   `toml:"token_serial"` // "" is any
	InitArgs     string   `toml:"init_args"`    // of C_Initialize, at most 1024 bytes; "" is none
	Pin          Secret   `toml:"pin"`
	Workers      int      `toml:"workers"`       // processes, 1 to 64
	Sessions     int      `toml:"sessions"`      // PKCS#11 sessions per worker, 1 to 1024
	Timeout      Duration `toml:"timeout"`       // per operation, 10 ms to 1 minute
	WorkerBinary string   `toml:"worker_binary"` // "" is hsm-worker beside the executable
	// PasswordCheck is PasswordInside or PasswordOnHost.
	PasswordCheck string `toml:"password_check"`
	Second        Token  `toml:"second"`
}

// Where passwords are checked, hsm.password_check.
const (
	PasswordInside = "hsm"
	PasswordOnHost = "host"
)

// Token is a PKCS#11 token that holds copies of the first one's keys.
type Token struct {
	Module      string `toml:"module"`
	TokenLabel  string `toml:"token_label"` // "" for none
	TokenSerial string `toml:"token_serial"`
	InitArgs    string `toml:"init_args"`
	Pin         Secret `toml:"pin"`
}

// TokenNamed is a token with the name that administrators use for it.
type TokenNamed struct {
	Name string // "first", "second"
	Token
}

// Tokens returns the first token and, if configured, the second.
func (h HSM) Tokens() []TokenNamed {
	all := []TokenNamed{{"first", Token{Module: h.Module, TokenLabel: h.TokenLabel, TokenSerial: h.TokenSerial, InitArgs: h.InitArgs, Pin: h.Pin}}}
	if h.Second.TokenLabel != "" || h.Second.TokenSerial != "" {
		all = append(all, TokenNamed{"second", h.Second})
	}
	return all
}

// Store names the database.
type Store struct {
	Driver string `toml:"driver"` // sqlite
	Path   string `toml:"path"`   // of the SQLite file
}

// API is the mutual-TLS listener of devices, backends and enrolling clients.
type API struct {
	Listen string       `toml:"listen"` // host:port
	Names  []string     `toml:"names"`  // DNS names of the TLS certificate
	IPs    []netip.Addr `toml:"ips"`    // IP addresses of the TLS certificate

	Strangers            int `toml:"strangers"`              // connections without a device certificate, 16 to 4096
	StrangersPerAddress  int `toml:"strangers_per_address"`  // of them, from one IPv4 address or IPv6 /64; 1 to 4096
	ConnectionsPerDevice int `toml:"connections_per_device"` // 2 to 256
	RequestsPerDevice    int `toml:"requests_per_device"`    // processed at once, 2 to 256
}

// Admin is the administrator's listener.
type Admin struct {
	Socket string `toml:"socket"` // path of a Unix socket, made with mode 0600
}

// Ops is the plain HTTP listener of liveness, readiness and metrics.
type Ops struct {
	Listen string `toml:"listen"` // host:port on the loopback interface; "" in a relay is none
}

// Trust names the trust domain and the pinned root.
type Trust struct {
	Domain string `toml:"domain"` // SPIFFE trust domain
	Root   string `toml:"root"`   // public key of a root, 66 hex digits; "" is none
}

// KeySchedule is the maximum time in use of a version of each key. 0 is the lifetime of its
// certificate, or no limit.
type KeySchedule struct {
	Auto     bool     `toml:"auto"`
	Notice   Duration `toml:"notice"` // 0 to 90 days
	KEM      Duration `toml:"kem"`    // this and what follows: 0, or 1 hour to 10 years
	Decision Duration `toml:"decision"`
	CA       Duration `toml:"ca"`
	ClientCA Duration `toml:"client_ca"`
	Enrol    Duration `toml:"enrol"`
	Wrap     Duration `toml:"wrap"`
	MAC      Duration `toml:"mac"`
	Root     Duration `toml:"root"`
}

// Backup names the backup key.
type Backup struct {
	Recipient string `toml:"recipient"` // file of the backup key's public half; "" is none
}

// UV names the command that verifies attestations of UV keys.
type UV struct {
	Attest  []string `toml:"attest"`  // command; empty is none
	Timeout Duration `toml:"timeout"` // 100 ms to 1 minute
	// Environment names variables of the daemon that the command gets.
	Environment []string `toml:"environment"`
}

// Log configures the log on standard error.
type Log struct {
	Level  string `toml:"level"`  // trace, debug, info, warn or error
	Format string `toml:"format"` // json or text
}

const day = 24 * time.Hour

// DefaultAppliance returns the defaults, with paths still relative.
func DefaultAppliance() Appliance {
	return Appliance{
		StateDir: "var",
		HSM: HSM{
			Module:     "/usr/lib/softhsm/libsofthsm2.so",
			TokenLabel: "countersign",
			Pin:        Secret{Source: "file", Path: "var/pin"},
			Workers:    2,
			Sessions:   2,
			Timeout:    Duration{2 * time.Second},
			Second:     Token{Pin: Secret{Source: "file", Path: "var/pin-second"}},

			PasswordCheck: PasswordInside,
		},
		Store: Store{Driver: "sqlite"},
		API: API{
			Listen: "127.0.0.1:8443",
			Names:  []string{"localhost"},
			IPs:    []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},

			Strangers: 512, StrangersPerAddress: 64, ConnectionsPerDevice: 16, RequestsPerDevice: 32,
		},
		Ops:   Ops{Listen: "127.0.0.1:9443"},
		Trust: Trust{Domain: "countersign.example"},
		Keys: KeySchedule{
			Notice: Duration{14 * day}, KEM: Duration{90 * day}, Decision: Duration{365 * day}, CA: Duration{365 * day},
			ClientCA: Duration{365 * day}, Enrol: Duration{365 * day}, Wrap: Duration{2 * 365 * day}, MAC: Duration{2 * 365 * day},
		},
		UV:  UV{Attest: []string{}, Environment: []string{}, Timeout: Duration{5 * time.Second}},
		Log: Log{Level: "info", Format: "json"},
	}
}

// LoadAppliance reads a file over the defaults and validates it. Relative paths
// are relative to the file's directory. Errors are [*Error].
func LoadAppliance(path string) (*Appliance, error) {
	a := DefaultAppliance()
	if err := load(path, &a); err != nil {
		return nil, err
	}
	return &a, nil
}

// Validate reports everything wrong with a configuration made in memory, as an
// [*Error]. LoadAppliance has done so already.
func (a *Appliance) Validate() error { return validate(a) }

func (a *Appliance) resolve(dir string) {
	a.StateDir = under(dir, a.StateDir)
	for _, path := range []*string{&a.HSM.Module, &a.HSM.Pin.Path, &a.HSM.Second.Module, &a.HSM.Second.Pin.Path, &a.HSM.WorkerBinary, &a.Store.Path, &a.Admin.Socket, &a.Backup.Recipient} {
		*path = under(dir, *path)
	}
	for _, padded := range []*string{
		&a.HSM.TokenLabel, &a.HSM.TokenSerial, &a.HSM.Second.TokenLabel, &a.HSM.Second.TokenSerial,
	} {
		*padded = strings.TrimRight(*padded, " ") // PKCS#11 pads them with blanks, which tools print
	}
	if len(a.UV.Attest) > 0 {
		a.UV.Attest[0] = command(dir, a.UV.Attest[0])
	}
	if a.Store.Path == "" {
		a.Store.Path = filepath.Join(a.StateDir, "countersign.db")
	}
	if a.Admin.Socket == "" {
		a.Admin.Socket = filepath.Join(a.StateDir, "admin.sock")
	}
}

func (a *Appliance) check() []Problem {
	var c checks
	c.filled("state_dir", a.StateDir)
	c.tokens(a.HSM)
	c.number("hsm.workers", a.HSM.Workers, span[int]{1, 64})
	c.number("hsm.sessions", a.HSM.Sessions, span[int]{1, 1024})
	c.duration("hsm.timeout", a.HSM.Timeout, span[time.Duration]{10 * time.Millisecond, time.Minute})
	c.oneOf("hsm.password_check", a.HSM.PasswordCheck, PasswordInside, PasswordOnHost)
	c.oneOf("store.driver", a.Store.Driver, "sqlite")
	c.filled("store.path", a.Store.Path)
	c.hostPort("api.listen", a.API.Listen)
	c.names("api", a.API)
	c.number("api.strangers", a.API.Strangers, span[int]{16, 4096})
	c.number("api.strangers_per_address", a.API.StrangersPerAddress, span[int]{1, 4096})
	c.number("api.connections_per_device", a.API.ConnectionsPerDevice, span[int]{2, 256})
	c.number("api.requests_per_device", a.API.RequestsPerDevice, span[int]{2, 256})
	c.socket("admin.socket", a.Admin.Socket)
	c.loopback("ops.listen", a.Ops.Listen)
	c.trustDomain("trust.domain", a.Trust.Domain)
	c.point("trust.root", a.Trust.Root)
	c.keys(a.Keys)
	if len(a.UV.Attest) > 0 && a.UV.Attest[0] == "" {
		c.fail("uv.attest", "the program is missing")
	}
	c.duration("uv.timeout", a.UV.Timeout, span[time.Duration]{100 * time.Millisecond, time.Minute})
	c.variables("uv.environment", a.UV.Environment)
	c.log(a.Log)
	return c.problems
}
