package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"countersign/hsm"
)

// maxText is the most of an id or a label that is told. Those of others may be
// of any length.
const maxText = 1024

func appendObject(buf []byte, o hsm.Object) []byte {
	buf = appendText(appendText(buf, o.Class), o.KeyType)
	buf = appendText(buf, o.ID[:min(len(o.ID), maxText)])
	buf = appendText(buf, o.Label[:min(len(o.Label), maxText)])
	buf = binary.BigEndian.AppendUint32(buf, uint32(o.True))
	buf = binary.BigEndian.AppendUint32(buf, uint32(o.Told))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(o.Mechanisms)))
	for _, m := range o.Mechanisms {
		buf = appendText(buf, m)
	}
	return buf
}

// ParseObjects reads the payload of an objects response; anything left over is
// [ErrFrame].
func ParseObjects(b []byte) ([]hsm.Object, error) {
	in, objects := reader{rest: b}, []hsm.Object{}
	for len(in.rest) > 0 && !in.bad {
		objects = append(objects, parseObject(&in))
	}
	if err := in.done(); err != nil {
		return nil, fmt.Errorf("reading objects: %w", err)
	}
	return objects, nil
}

func parseObject(in *reader) (o hsm.Object) {
	o.Class, o.KeyType = string(in.text()), string(in.text())
	o.ID, o.Label = bytes.Clone(in.text()), string(in.text())
	o.True, o.Told = hsm.Attributes(in.u32()), hsm.Attributes(in.u32())
	for n := in.u16(); n > 0 && !in.bad; n-- {
		o.Mechanisms = append(o.Mechanisms, string(in.text()))
	}
	return o
}
