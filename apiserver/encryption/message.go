package encryption

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is any message of KMS v2 and the stored EncryptedObject: they have
// at most three strings in fields 1 to 4, a map from string to bytes in field
// notesAt (0: none), and a number in field 5. Six generated types and a
// dependency would say the same.
type message struct {
	strings [4][]byte
	notesAt int
	notes   map[string][]byte
	number  uint64
}

func (m *message) field(n int) []byte     { return m.strings[n-1] }
func (m *message) text(n int) string      { return string(m.strings[n-1]) }
func (m *message) set(n int, data []byte) { m.strings[n-1] = data }

func (m *message) marshal() []byte {
	var out []byte
	for n := 1; n <= len(m.strings); n++ {
		if data := m.field(n); len(data) > 0 && n != m.notesAt {
			out = protowire.AppendTag(out, protowire.Number(n), protowire.BytesType)
			out = protowire.AppendBytes(out, data)
		}
		if n != m.notesAt {
			continue
		}
		names := make([]string, 0, len(m.notes))
		for name := range m.notes {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			var entry []byte
			entry = protowire.AppendTag(entry, 1, protowire.BytesType)
			entry = protowire.AppendString(entry, name)
			entry = protowire.AppendTag(entry, 2, protowire.BytesType)
			entry = protowire.AppendBytes(entry, m.notes[name])
			out = protowire.AppendTag(out, protowire.Number(n), protowire.BytesType)
			out = protowire.AppendBytes(out, entry)
		}
	}
	if m.number != 0 {
		out = protowire.AppendTag(out, 5, protowire.VarintType)
		out = protowire.AppendVarint(out, m.number)
	}
	return out
}

var errBroken = errors.New("the encrypted object is not a valid message")

// unmarshal reads data into m, whose notesAt is set; strings are part of data.
// Fields that are not known are skipped.
func (m *message) unmarshal(data []byte) error {
	for len(data) > 0 {
		n, typ, size := protowire.ConsumeTag(data)
		if size < 0 {
			return errBroken
		}
		data = data[size:]
		switch {
		case typ == protowire.BytesType && n >= 1 && int(n) <= len(m.strings):
			value, size := protowire.ConsumeBytes(data)
			if size < 0 {
				return errBroken
			}
			data = data[size:]
			if int(n) != m.notesAt {
				m.set(int(n), value)
			} else if err := m.note(value); err != nil {
				return err
			}
		case typ == protowire.VarintType && n == 5:
			if m.number, size = protowire.ConsumeVarint(data); size < 0 {
				return errBroken
			}
			data = data[size:]
		default:
			if size = protowire.ConsumeFieldValue(n, typ, data); size < 0 {
				return errBroken
			}
			data = data[size:]
		}
	}
	return nil
}

// note reads one entry of the map.
func (m *message) note(data []byte) error {
	entry := message{}
	if err := entry.unmarshal(data); err != nil {
		return err
	}
	if m.notes == nil {
		m.notes = map[string][]byte{}
	}
	m.notes[entry.text(1)] = entry.field(2)
	return nil
}

// messages is the gRPC codec for them.
type messages struct{}

// Name implements encoding.Codec: on the wire it is protobuf.
func (messages) Name() string { return "proto" }

// Marshal implements encoding.Codec.
func (messages) Marshal(v any) ([]byte, error) {
	m, ok := v.(*message)
	if !ok {
		return nil, fmt.Errorf("encryption: %T is no message", v)
	}
	return m.marshal(), nil
}

// Unmarshal implements encoding.Codec. It copies: gRPC uses the buffer again.
func (messages) Unmarshal(data []byte, v any) error {
	m, ok := v.(*message)
	if !ok {
		return fmt.Errorf("encryption: %T is no message", v)
	}
	return m.unmarshal(slices.Clone(data))
}
