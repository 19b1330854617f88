package audit

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// Names finds the names of clients, devices and services, which records mention by number. A nil function finds none.
type Names struct {
	Client  func(protocol.ClientID) string
	Device  func(protocol.DeviceID) string
	Service func(protocol.Service) string
}

// party is a client or a device in a readable record.
type party struct {
	Name string `json:"name,omitempty"`
	ID   string `json:"id"` // hex
}

// Results of a [Decision] that decides nothing: no device acts on it, and no limit counts it.
const (
	ResultDryRun = "dry run" // a request of service 0
	ResultStatus = "status"  // a question of service 2
)

// ResultOf returns the word for the result of a countersignature: approved, denied, pending or retry. Requests that
// decide nothing have [ResultDryRun] or [ResultStatus] instead.
func ResultOf(s protocol.Service, r protocol.Result) string {
	switch s {
	case protocol.ServiceDryRun:
		return ResultDryRun
	case protocol.ServiceStatus:
		return ResultStatus
	}
	return r.String()
}

// Subject returns the subject of a record with the name of its client or device, and the id of that
// party in hexadecimal. The id is "" if the record does not have it; without a name the id stands for it.
func (n Names) Subject(r Record) (subject, id string) {
	kind, named, _ := strings.Cut(r.Subject, "/")
	if raw, ok := r.Words()["id"].(string); ok {
		id = raw
	} else if isID(kind, named) {
		id = named
	}
	if name := n.partyOf(kind, id).Name; name != "" {
		return kind + "/" + name, id
	}
	return r.Subject, id
}

// The sizes of ids, in hexadecimal digits.
const (
	clientDigits = 2 * len(protocol.ClientID{})
	deviceDigits = 2 * len(protocol.DeviceID{})
)

// isID reports whether the subject of a record is an id. No name looks like one.
func isID(kind, named string) bool {
	digits := map[string]int{KindClients: clientDigits, KindDevices: deviceDigits}[kind]
	_, err := hex.DecodeString(named)
	return digits != 0 && len(named) == digits && err == nil
}

// partyOf returns the client or device of an id in hexadecimal.
func (n Names) partyOf(kind, id string) party {
	p := party{ID: id}
	raw, _ := hex.DecodeString(id) // without an id there is no name
	switch {
	case kind == KindClients && len(id) == clientDigits && n.Client != nil:
		p.Name = n.Client(protocol.ClientID(raw))
	case kind == KindDevices && len(id) == deviceDigits && n.Device != nil:
		p.Name = n.Device(protocol.DeviceID(raw))
	}
	return p
}

// Fields returns the fields of a record for people and their programs: parties with name and id, results and reasons
// in words, amounts with decimals. The bytes that a decision rests on are in its field "evidence", in hexadecimal. A
// body that is no decision although its kind is one has its fields as [Record.Words] returns them.
func (n Names) Fields(r Record) map[string]any {
	switch r.Kind {
	case KindDecision, KindRefused:
		if fields, err := n.decision(r); err == nil {
			return fields
		}
	case KindFinal, KindSettled:
		return n.ended(r.Words())
	}
	return r.Words()
}

// decision returns the fields of a decision or a refusal.
func (n Names) decision(r Record) (map[string]any, error) {
	var d Decision
	if err := cbor.Unmarshal(r.Body, &d); err != nil {
		return nil, fmt.Errorf("audit record %d: %w", r.Sequence, err)
	}
	made, err := receipt.Parse(d.Decision)
	if err != nil {
		return nil, err
	}
	signed, err := message.ParseStatement(d.Statement)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{
		"result": resultOf(r.Kind, signed.P1.Service, d.Reason), "client": n.partyOf(KindClients, signed.P1.Client.String()),
		"device": n.partyOf(KindDevices, made.Device.String()), "serial": signed.P1.Serial.String(),
		"transaction": made.Transaction.String(), "service": uint64(made.Service), "level": uint64(made.Level),
		"factors": factorNames(made.Factors), "policy": hex.EncodeToString(d.Policy), "evidence": evidence(d),
	}
	addReason(fields, d.Reason)
	n.addRequest(fields, made, signed)
	if d.Reference != "" {
		fields["reference"] = d.Reference
	}
	if len(d.Asked) == 2 && signed.P1.Asked != nil {
		asked := map[string]any{"serial": signed.P1.Asked.String(), "result": protocol.Result(d.Asked[0]).String()}
		addReason(asked, protocol.Code(d.Asked[1]))
		fields["asked"] = asked
	}
	return fields, nil
}

// addRequest adds what was asked for beside the number of the service.
func (n Names) addRequest(fields map[string]any, made receipt.Decision, signed message.StatementFields) {
	if n.Service != nil {
		if name := n.Service(made.Service); name != "" {
			fields["service_name"] = name
		}
	}
	if made.Amount != nil {
		fields["amount"] = made.Amount.Decimal()
	}
	if signed.P2.Text != "" {
		fields["text"] = signed.P2.Text
	}
	if first := signed.P2.FirstStatement; first != nil {
		fields["second_approval_of"] = hex.EncodeToString(first[:]) // SHA-256 of the first client's statement
	}
}

func evidence(d Decision) map[string]any {
	return map[string]any{
		"statement": hex.EncodeToString(d.Statement), "signature": hex.EncodeToString(d.Signature), "slot": d.Slot,
		"proof": hex.EncodeToString(d.Proof), "decision": hex.EncodeToString(d.Decision),
	}
}

// resultOf returns the result of a record by the reason that the client was told.
func resultOf(kind string, s protocol.Service, reason protocol.Code) string {
	switch {
	case kind == KindRefused:
		return "refused"
	case reason == 0:
		return ResultOf(s, protocol.ResultApproved)
	case reason == protocol.CodePending:
		return ResultOf(s, protocol.ResultPending)
	}
	return ResultOf(s, protocol.ResultDenied)
}

// ended returns the fields of a record of the end of a serial, from its words.
func (n Names) ended(words map[string]any) map[string]any {
	if result, ok := words["result"].(uint64); ok {
		words["result"] = protocol.Result(result).String()
	}
	if reason, ok := words["reason"].(uint64); ok {
		delete(words, "reason")
		addReason(words, protocol.Code(reason))
	}
	if by, ok := words["by"].(string); ok {
		words["by"] = n.partyOf(KindClients, by)
	}
	return words
}

// addReason adds a code and its words, unless it is 0: the result says it all.
func addReason(fields map[string]any, code protocol.Code) {
	if code != 0 {
		fields["code"], fields["reason"] = uint64(code), code.String()
	}
}

func factorNames(f protocol.Factors) []string {
	if f == 0 {
		return []string{}
	}
	return strings.Split(f.String(), "+")
}
