package batch

import (
	"fmt"
	"strings"

	"github.com/robfig/cron/v3"
)

// ParseSchedule reads the schedule of a CronJob: five fields or a descriptor,
// optionally after a time zone.
func ParseSchedule(spec string) (cron.Schedule, error) {
	if zone := strings.HasPrefix(spec, "TZ=") || strings.HasPrefix(spec, "CRON_TZ="); zone && !strings.Contains(spec, " ") {
		return nil, fmt.Errorf("nothing follows the time zone: %s", spec) // the parser would panic
	}
	return cron.ParseStandard(spec)
}
