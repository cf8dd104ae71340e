package cronjob

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// schedule tells when a cron expression fires.
type schedule struct {
	minute, hour, day, month, weekday uint64        // bit i: value i matches
	anyDay, anyWeekday                bool          // the field was "*" or "?"
	every                             time.Duration // "@every": everything else is unused
}

// field is the range and the names of one position of a cron expression.
type field struct {
	name     string
	min, max int
	names    []string // of min, min+1 …
}

var fields = [5]field{
	{"minute", 0, 59, nil}, {"hour", 0, 23, nil}, {"day of month", 1, 31, nil},
	{"month", 1, 12, []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{"day of week", 0, 6, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

var shorthands = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

// parse reads the five standard fields, or a shorthand such as "@daily" or "@every 1h30m".
func parse(expr string) (*schedule, error) {
	expr = strings.TrimSpace(expr)
	if d, ok := strings.CutPrefix(expr, "@every "); ok {
		every, err := time.ParseDuration(strings.TrimSpace(d))
		if err != nil {
			return nil, fmt.Errorf("failed to parse duration %s: %w", expr, err)
		}
		return &schedule{every: max(every.Truncate(time.Second), time.Second)}, nil
	}
	if strings.HasPrefix(expr, "@") {
		long, ok := shorthands[expr]
		if !ok {
			return nil, fmt.Errorf("unrecognized descriptor: %s", expr)
		}
		expr = long
	}
	parts := strings.Fields(expr)
	if len(parts) != len(fields) {
		return nil, fmt.Errorf("expected exactly 5 fields, found %d: %v", len(parts), parts)
	}
	var bits [5]uint64
	for i, p := range parts {
		b, err := fields[i].parse(p)
		if err != nil {
			return nil, err
		}
		bits[i] = b
	}
	star := func(s string) bool { return strings.HasPrefix(s, "*") || strings.HasPrefix(s, "?") }
	return &schedule{minute: bits[0], hour: bits[1], day: bits[2], month: bits[3], weekday: bits[4],
		anyDay: star(parts[2]), anyWeekday: star(parts[4])}, nil
}

// parse reads "a", "a-b", "*", each with an optional "/step", separated by commas.
func (f field) parse(s string) (uint64, error) {
	var bits uint64
	for _, part := range strings.Split(s, ",") {
		span, stepText, stepped := strings.Cut(part, "/")
		first, last := f.min, f.max
		if span != "*" && span != "?" {
			a, b, ranged := strings.Cut(span, "-")
			var err error
			if first, err = f.value(a); err != nil {
				return 0, err
			}
			switch {
			case ranged:
				if last, err = f.value(b); err != nil {
					return 0, err
				}
			case !stepped:
				last = first
			}
		}
		step := 1
		if stepped {
			n, err := strconv.Atoi(stepText)
			if err != nil || n <= 0 {
				return 0, fmt.Errorf("%s: step of %q should be a positive number", f.name, part)
			}
			step = n
		}
		if first < f.min || last > f.max || first > last {
			return 0, fmt.Errorf("%s: %q is not within %d-%d", f.name, part, f.min, f.max)
		}
		for v := first; v <= last; v += step {
			bits |= 1 << v
		}
	}
	return bits, nil
}

func (f field) value(s string) (int, error) {
	for i, n := range f.names {
		if strings.EqualFold(s, n) {
			return f.min + i, nil
		}
	}
	v, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number", f.name, s)
	}
	return v, nil
}

// next returns the first time after t, in t's location, at which s fires; zero if it never does
// within five years. Times a clock change skips are skipped; those it repeats fire once an hour
// field matches again.
func (s *schedule) next(t time.Time) time.Time {
	if s.every > 0 {
		return t.Add(s.every).Truncate(time.Second)
	}
	loc := t.Location()
	t = t.Truncate(time.Second).Add(time.Second)
	if t.Second() > 0 {
		t = t.Add(time.Duration(60-t.Second()) * time.Second)
	}
	for limit := t.Year() + 5; t.Year() <= limit; {
		switch {
		case s.month&(1<<t.Month()) == 0:
			t = time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, loc)
		case !s.onDay(t):
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, loc)
		case s.hour&(1<<t.Hour()) == 0:
			t = t.Add(time.Duration(60-t.Minute()) * time.Minute)
		case s.minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// onDay follows cron's rule: if both day fields are restricted, either may match.
func (s *schedule) onDay(t time.Time) bool {
	day, weekday := s.day&(1<<t.Day()) != 0, s.weekday&(1<<t.Weekday()) != 0
	if s.anyDay || s.anyWeekday {
		return day && weekday
	}
	return day || weekday
}
