package h2

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Blocks of header fields (RFC 7541) hold literals that the client does not
// keep, without Huffman's code: so a block depends on nothing before it and is
// made without a lock, for some bytes more on the wire.

// appendField adds a header field. One that is not valid is left out, as
// net/http does.
func appendField(block []byte, key, value string) []byte {
	name, index := known(key)
	if name == "" {
		if name = strings.ToLower(key); !httpguts.ValidHeaderFieldName(name) {
			return block
		}
	}
	if !httpguts.ValidHeaderFieldValue(value) {
		return block
	}
	if block = appendInt(block, 0, 4, index); index == 0 {
		block = append(appendInt(block, 0, 7, len(name)), name...)
	}
	return append(appendInt(block, 0, 7, len(value)), value...)
}

// appendStatus begins a response's block.
func appendStatus(block []byte, status int) []byte {
	if status == http.StatusOK {
		return append(block, 0x88) // the static table has it whole
	}
	block = append(appendInt(block, 0, 4, 8), 3)
	return strconv.AppendInt(block, int64(status), 10)
}

func appendDate(block []byte) []byte {
	block = appendInt(block, 0, 4, 33)
	block = append(block, byte(len(http.TimeFormat)))
	return time.Now().UTC().AppendFormat(block, http.TimeFormat)
}

// appendInt adds n behind the high bits of first, of which it may use the low
// ones (section 5.1).
func appendInt(block []byte, first byte, low, n int) []byte {
	most := 1<<low - 1
	if n < most {
		return append(block, first|byte(n))
	}
	block = append(block, first|byte(most))
	for n -= most; n >= 128; n >>= 7 {
		block = append(block, byte(n)|0x80)
	}
	return append(block, byte(n))
}

// known is the name on the wire of the fields that most responses have, and
// its index in the static table, 0 if it has none.
func known(key string) (string, int) {
	switch key {
	case "Content-Type":
		return "content-type", 31
	case "Content-Length":
		return "content-length", 28
	case "Content-Encoding":
		return "content-encoding", 26
	case "Cache-Control":
		return "cache-control", 24
	case "Date":
		return "date", 33
	case "Vary":
		return "vary", 59
	case "Etag":
		return "etag", 34
	case "Audit-Id":
		return "audit-id", 0
	case "Warning":
		return "warning", 0
	case "X-Kubernetes-Pf-Flowschema-Uid":
		return "x-kubernetes-pf-flowschema-uid", 0
	case "X-Kubernetes-Pf-Prioritylevel-Uid":
		return "x-kubernetes-pf-prioritylevel-uid", 0
	}
	return "", 0
}
