package protocol

import "countersign/protocol/internal/det"

// marshal, unmarshal and unmarshalMap are the codec of package det with its
// errors turned into [CodeFormat].

func marshal(v any) []byte { return det.Marshal(v) }

func unmarshal(b []byte, v any) error {
	if err := det.Unmarshal(b, v); err != nil {
		return formatError("%v", err)
	}
	return nil
}

func unmarshalMap(b []byte, v any, known ...uint64) error {
	if err := det.UnmarshalMap(b, v, known...); err != nil {
		return formatError("%v", err)
	}
	return nil
}
