package attack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver of the store

	"countersign/appliance/adminapi"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
)

// Arena is one appliance under attack.
type Arena struct {
	*harness.Appliance
	*harness.Report

	admin *http.Client // to the admin socket
	https *http.Client // without a client certificate
	db    *sql.DB      // the store, not through the appliance
	till  *device.Device
}

// openArena starts an appliance.
func openArena(r *harness.Report) *Arena {
	a := &Arena{Report: r}
	dir := filepath.Join(harness.TempDir(r.T()), "dev")
	a.Appliance = harness.Must(harness.Start(r.Context(), harness.Config{Bin: harness.Must(harness.Built()), Dir: dir}))
	a.connect(r.Context())
	return a
}

func (a *Arena) connect(ctx context.Context) {
	socket := strings.TrimPrefix(a.Admin, "unix:")
	a.admin = &http.Client{Timeout: callLimit, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	config := a.TLS()
	a.https = Client(config)
	source := url.URL{Scheme: "file", Path: filepath.Join(a.Config.Dir, "countersign.db"), RawQuery: "_pragma=busy_timeout(5000)"}
	a.db = harness.Must(sql.Open("sqlite", source.String()))
	a.till = a.EnrolDevice(ctx, "till")
}

// callLimit bounds every call.
const callLimit = 20 * time.Second

// Client makes HTTPS calls with a TLS configuration.
func Client(config *tls.Config) *http.Client {
	return &http.Client{Timeout: callLimit, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
}

// TLS is how an honest caller without a certificate connects.
func (a *Arena) TLS() *tls.Config {
	raw := harness.Must(os.ReadFile(a.CA))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		harness.Fail("no certificate in %s", a.CA)
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
}

// Till is the device that attacks are made at, if no other is named.
func (a *Arena) Till() *device.Device { return a.till }

// Ask calls the admin API: GET without a body, else POST. into may be nil.
func (a *Arena) Ask(ctx context.Context, path string, body, into any) {
	method, reader := http.MethodGet, io.Reader(nil)
	if body != nil {
		raw := harness.Must(json.Marshal(body))
		method, reader = http.MethodPost, bytes.NewReader(raw)
	}
	req := harness.Must(http.NewRequestWithContext(ctx, method, "http://admin"+adminapi.Prefix+path, reader))
	res := harness.Must(a.admin.Do(req))
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("admin API: %s: status %d: %s", path, res.StatusCode, raw)
	}
	if err != nil || into == nil {
		harness.Do(err)
		return
	}
	harness.Do(json.Unmarshal(raw, into))
}

// Do is a verb on a client or device: "client/alice/suspend".
func (a *Arena) Do(ctx context.Context, path string) {
	a.Ask(ctx, path, struct{}{}, nil)
}

// ClientState returns a client as the admin API describes it.
func (a *Arena) ClientState(ctx context.Context, p *Phone) (c adminapi.Client) {
	a.Ask(ctx, "client/"+p.Name, nil, &c)
	return c
}

// Invitation makes an activation code; path is "client/alice".
func (a *Arena) Invitation(ctx context.Context, path string, i adminapi.Invite) enrol.ActivationCode {
	var invited adminapi.Invited
	a.Ask(ctx, path+"/invite", i, &invited)
	return harness.Must(enrol.ParseActivationCode(invited.ActivationCode))
}

// EnrolDevice enrols a device.
func (a *Arena) EnrolDevice(ctx context.Context, name string) *device.Device {
	code := a.Invitation(ctx, "device/"+name, adminapi.Invite{Display: "Countersign dev box"})
	return harness.Must(device.Enrol(ctx, device.Config{URL: a.URL, CA: a.CA}, code.String()))
}

// Answer is what came back over HTTPS.
type Answer struct {
	Status int
	Body   []byte
	Code   protocol.Code // of problem+json, 0: none
}

// Verdict of a JSON call.
func (a Answer) Verdict() Verdict { return HTTP(a.Status, a.Code) }

// PostJSON posts to the API without a client certificate.
func (a *Arena) PostJSON(ctx context.Context, path string, body []byte) Answer {
	return a.PostAs(ctx, a.https, Post{Path: path, Type: "application/json", Body: body})
}

// Post is a call.
type Post struct {
	Path, Type string
	Body       []byte
}

// PostAs posts to the API through some client. An error is one of the connection.
func (a *Arena) PostAs(ctx context.Context, c *http.Client, p Post) Answer {
	req := harness.Must(http.NewRequestWithContext(ctx, http.MethodPost, a.URL+p.Path, bytes.NewReader(p.Body)))
	req.Header.Set("Content-Type", p.Type)
	res := harness.Must(c.Do(req))
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw := harness.Must(io.ReadAll(res.Body))
	problem, _ := deviceapi.ParseProblem(raw) // without a problem the status is enough
	return Answer{Status: res.StatusCode, Body: raw, Code: problem.Code}
}

// State is everything that an attack could have changed: each table of the store,
// the audit records by kind, and the hook log of the appliance's own relay. Records
// of counts, which come once a minute, and the row that the heartbeat writes are none of it.
type State struct {
	tables map[string]table
	acts   int
}

type table struct {
	rows int
	sum  [sha256.Size]byte
}

// Any is any change.
const Any = -1 << 31

// Effects are changes by table, in rows; "record/KIND" are audit records and "acts"
// lines of the hook log. A table that is not named stays as it is to the bit; one
// with 0 may have rows that changed.
type Effects map[string]int

// The usual effects.
var (
	Nothing = Effects{}
	// Spent: one serial is spent, with its decision and record.
	Spent = Effects{"decision": 1, "record/decision": 1, "restraint": 0}
	// Tried: passwords were tried.
	Tried = Effects{"restraint": 0, "attempt": Any}
	// Charged: limits were charged.
	Charged = Effects{"restraint": 0}
)

func (e Effects) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(e)) {
		switch n := e[name]; n {
		case 0:
			parts = append(parts, name+" altered")
		case Any:
			parts = append(parts, name+" in any way")
		default:
			parts = append(parts, fmt.Sprintf("%s %+d rows", name, n))
		}
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// And adds effects.
func (e Effects) And(others ...Effects) Effects {
	sum := maps.Clone(e)
	for _, other := range others {
		for name, n := range other {
			if sum[name] == Any || n == Any {
				sum[name] = Any
				continue
			}
			sum[name] += n
		}
	}
	return sum
}

// Refused is at most so many audit records of countersignatures that spent nothing: repeats are counted,
// and recorded once a minute.
func Refused(n int) Effects { return Effects{refusedRecords: n} }

const refusedRecords = "record/" + audit.KindRefused

// State reads the state, in one read transaction.
func (a *Arena) State(ctx context.Context) State {
	s := State{tables: map[string]table{}}
	tx := harness.Must(a.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}))
	defer func() { _ = tx.Rollback() }() // nothing was written
	names := texts(ctx, tx, `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT IN ('record', 'goose_db_version')`)
	for _, name := range names {
		s.tables[name] = digest(ctx, tx, `SELECT * FROM "`+name+`"`)
	}
	kinds := texts(ctx, tx, `SELECT DISTINCT kind FROM record WHERE kind NOT IN ('failures', 'repeats')`)
	for _, kind := range kinds {
		s.tables["record/"+kind] = digest(ctx, tx, `SELECT leaf FROM (SELECT sequence AS leaf, kind FROM record) WHERE kind = ?`, kind)
	}
	acts, err := a.Acts()
	s.acts = len(acts)
	harness.Do(err)
	return s
}

// texts reads a column of strings.
func texts(ctx context.Context, tx *sql.Tx, query string) (all []string) {
	rows := harness.Must(tx.QueryContext(ctx, query))
	defer func() { _ = rows.Close() }() // Err returns it
	for rows.Next() {
		var one string
		harness.Do(rows.Scan(&one))
		all = append(all, one)
	}
	harness.Do(rows.Err())
	return all
}

// digest hashes rows in the order they come.
func digest(ctx context.Context, tx *sql.Tx, query string, args ...any) (t table) {
	rows := harness.Must(tx.QueryContext(ctx, query, args...))
	defer func() { _ = rows.Close() }() // Err returns it
	columns := harness.Must(rows.Columns())
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	h := sha256.New()
	for ; rows.Next(); t.rows++ {
		harness.Do(rows.Scan(into...))
		fmt.Fprintf(h, "%v\n", values)
	}
	t.sum = [sha256.Size]byte(h.Sum(nil))
	harness.Do(rows.Err())
	return t
}

// Leaves reads the state before and after an attack, and checks the difference.
func (a *Arena) Leaves(ctx context.Context, what string, want Effects, attack func()) {
	before := a.State(ctx)
	attack()
	after := a.State(ctx)
	wrong := before.against(after, want)
	a.Check(wrong == nil, "%s: what it left: %s; wanted %s", what, strings.Join(wrong, ", "), want)
}

// against lists the changes that were not wanted.
func (s State) against(after State, want Effects) (wrong []string) {
	names := slices.Concat(slices.Collect(maps.Keys(s.tables)), slices.Collect(maps.Keys(after.tables)), slices.Collect(maps.Keys(want)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		old, now := s.tables[name], after.tables[name]
		delta, named := want[name]
		switch {
		case name == "acts" || delta == Any:
		case name == refusedRecords && now.rows >= old.rows && now.rows-old.rows <= delta:
		case now.rows-old.rows != delta:
			wrong = append(wrong, fmt.Sprintf("%s %+d rows", name, now.rows-old.rows))
		case !named && now.sum != old.sum && now.rows != 0:
			wrong = append(wrong, name+" altered")
		}
	}
	if got := after.acts - s.acts; got != want["acts"] {
		wrong = append(wrong, fmt.Sprintf("acts %+d", got))
	}
	return wrong
}

// Tamper writes to the store behind the appliance's back, as one who has its file
// does.
func (a *Arena) Tamper(ctx context.Context, statements ...string) {
	for _, statement := range statements {
		harness.Must(a.db.ExecContext(ctx, statement))
	}
}

// Restraints remembers what restricts the clients, and returns what puts it back as it was,
// seals and all.
func (a *Arena) Restraints(ctx context.Context) (putBack func(context.Context)) {
	rows := harness.Must(a.db.QueryContext(ctx, `SELECT * FROM restraint`))
	defer func() { _ = rows.Close() }() // read to the end
	columns := harness.Must(rows.Columns())
	var all [][]any
	for rows.Next() {
		row := make([]any, len(columns))
		into := make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		harness.Do(rows.Scan(into...))
		all = append(all, row)
	}
	harness.Do(rows.Err())
	return func(ctx context.Context) {
		// A row that is replaced is not updated, so that no trigger holds it.
		statement := `INSERT OR REPLACE INTO restraint VALUES (?` + strings.Repeat(", ?", len(columns)-1) + `)`
		for _, row := range all {
			harness.Must(a.db.ExecContext(ctx, statement, row...))
		}
	}
}

// Outcomes counts the devices' reports.
func (a *Arena) Outcomes(ctx context.Context) (n int) {
	harness.Do(a.db.QueryRowContext(ctx, `SELECT count(*) FROM record WHERE kind = 'outcome'`).Scan(&n))
	return n
}
