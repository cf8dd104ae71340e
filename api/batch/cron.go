package batch

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// cronField is the range of one field of a cron schedule and the names its
// values may have.
type cronField struct {
	low, high int
	names     []string
}

var cronFields = []cronField{
	{0, 59, nil},
	{0, 23, nil},
	{1, 31, nil},
	{1, 12, []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{0, 6, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

// checkCron tells whether a schedule is a standard cron expression: five
// fields or a descriptor, optionally after a time zone (robfig/cron's grammar
// and messages, which users of upstream know).
func checkCron(spec string) error {
	if spec == "" {
		return fmt.Errorf("empty spec string")
	}
	if strings.HasPrefix(spec, "TZ=") || strings.HasPrefix(spec, "CRON_TZ=") {
		zone, rest, found := strings.Cut(spec, " ")
		_, zone, _ = strings.Cut(zone, "=")
		if _, err := time.LoadLocation(zone); err != nil || !found {
			return fmt.Errorf("provided bad location %s: %v", zone, err)
		}
		spec = strings.TrimSpace(rest)
	}
	if strings.HasPrefix(spec, "@") {
		return checkDescriptor(spec)
	}
	parts := strings.Fields(spec)
	if len(parts) != len(cronFields) {
		return fmt.Errorf("expected exactly %d fields, found %d: %s", len(cronFields), len(parts), parts)
	}
	for i, part := range parts {
		for _, expr := range strings.FieldsFunc(part, func(r rune) bool { return r == ',' }) {
			if err := cronFields[i].check(expr); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkDescriptor(s string) error {
	switch s {
	case "@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly":
		return nil
	}
	if every, ok := strings.CutPrefix(s, "@every "); ok {
		if _, err := time.ParseDuration(every); err != nil {
			return fmt.Errorf("failed to parse duration %s: %s", s, err)
		}
		return nil
	}
	return fmt.Errorf("unrecognized descriptor: %s", s)
}

// check checks one range: "*", "5", "mon-fri", "*/15", "0-30/5".
func (f cronField) check(expr string) error {
	parts := strings.Split(expr, "/")
	ends := strings.Split(parts[0], "-")
	low, high := f.low, f.high
	var err error
	if ends[0] != "*" && ends[0] != "?" {
		if low, err = f.value(ends[0]); err != nil {
			return err
		}
		switch len(ends) {
		case 1:
			high = low
		case 2:
			if high, err = f.value(ends[1]); err != nil {
				return err
			}
		default:
			return fmt.Errorf("too many hyphens: %s", expr)
		}
	}
	step := 1
	switch len(parts) {
	case 1:
	case 2:
		if step, err = number(parts[1]); err != nil {
			return err
		}
		if len(ends) == 1 {
			high = f.high
		}
	default:
		return fmt.Errorf("too many slashes: %s", expr)
	}
	switch {
	case low < f.low:
		return fmt.Errorf("beginning of range (%d) below minimum (%d): %s", low, f.low, expr)
	case high > f.high:
		return fmt.Errorf("end of range (%d) above maximum (%d): %s", high, f.high, expr)
	case low > high:
		return fmt.Errorf("beginning of range (%d) beyond end of range (%d): %s", low, high, expr)
	case step == 0:
		return fmt.Errorf("step of range should be a positive number: %s", expr)
	}
	return nil
}

func (f cronField) value(s string) (int, error) {
	for i, name := range f.names {
		if strings.EqualFold(s, name) {
			return f.low + i, nil
		}
	}
	return number(s)
}

func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("failed to parse int from %s: %s", s, err)
	}
	if n < 0 {
		return 0, fmt.Errorf("negative number (%d) not allowed: %s", n, s)
	}
	return n, nil
}
