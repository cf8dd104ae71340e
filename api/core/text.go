package core

import (
	"fmt"
	"strings"
)

func sprint(v any) string { return fmt.Sprint(v) }

func join(texts []string, sep string) string { return strings.Join(texts, sep) }

func contains(s, part string) bool { return strings.Contains(s, part) }

func isIPv6(ip string) bool { return strings.Contains(ip, ":") }
