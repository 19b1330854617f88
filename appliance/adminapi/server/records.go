package server

import (
	"encoding/hex"
	"fmt"
	"net/http"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/appliance/parties"
	"countersign/appliance/store/audit"
)

// audit lists audit records: the newest ones first, or those after a sequence number.
func (s *Server) audit(r *http.Request, _ adminapi.None) ([]adminapi.Record, error) {
	after, err := queryNumber(r, "after", 0)
	if err != nil {
		return nil, err
	}
	limit, err := queryNumber(r, "limit", adminapi.RecordsShown)
	if err != nil {
		return nil, err
	}
	if limit < 1 || limit > adminapi.RecordsMost {
		return nil, fmt.Errorf("%w: limit %d: want 1 to %d", parties.ErrInput, limit, adminapi.RecordsMost)
	}
	var records []audit.Record
	if r.URL.Query().Has("after") {
		records, err = s.Appliance.Records(r.Context(), after, int(limit))
	} else {
		records, err = s.Appliance.LastRecords(r.Context(), int(limit))
	}
	names := s.Appliance.Names(r.Context())
	return each(records, func(rec audit.Record) adminapi.Record { return recordJSON(names, rec) }), err
}

func recordJSON(names audit.Names, rec audit.Record) adminapi.Record {
	leaf := rec.Leaf()
	out := adminapi.Record{
		Sequence: rec.Sequence, At: rec.At, Kind: rec.Kind, Leaf: hex.EncodeToString(leaf[:]), Fields: names.Fields(rec),
	}
	out.Subject, out.ID = names.Subject(rec)
	if rec.Kind == audit.KindChanges {
		addParameters(out.Fields)
	}
	return out
}

// addParameters adds what a change request asks for, which its record has as a document.
func addParameters(fields map[string]any) {
	text, _ := fields["document"].(string)
	document, err := hex.DecodeString(text)
	if err != nil || len(document) == 0 {
		return
	}
	if request, err := change.Parse(document); err == nil {
		fields["parameters"] = parametersJSON(request.Parameters)
	}
}
