package controller

import (
	"sync/atomic"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
)

// component names a controller in the events it sends, where upstream's name differs from that of
// the controller.
func component(controller string) string {
	switch controller {
	case "endpoints-controller":
		return "endpoint-controller"
	case "endpointslice-controller":
		return "endpoint-slice-controller"
	case "endpointslice-mirroring-controller":
		return "endpoint-slice-mirroring-controller"
	case "replicationcontroller-controller":
		return "replication-controller"
	case "node-lifecycle-controller":
		return "node-controller"
	case "node-ipam-controller":
		return "cidrAllocator"
	case "disruption-controller":
		return "controllermanager"
	}
	return controller
}

// lateRecorder is the recorder controllers are built with; the broadcaster behind it exists only
// while Run runs, and before that events are dropped.
type lateRecorder struct {
	to atomic.Pointer[record.EventRecorderLogger]
}

func (r *lateRecorder) set(to record.EventRecorderLogger) { r.to.Store(&to) }

func (r *lateRecorder) Event(object runtime.Object, eventtype, reason, message string) {
	if to := r.to.Load(); to != nil {
		(*to).Event(object, eventtype, reason, message)
	}
}

func (r *lateRecorder) Eventf(object runtime.Object, eventtype, reason, format string, args ...any) {
	if to := r.to.Load(); to != nil {
		(*to).Eventf(object, eventtype, reason, format, args...)
	}
}

func (r *lateRecorder) AnnotatedEventf(object runtime.Object, annotations map[string]string, eventtype, reason, format string, args ...any) {
	if to := r.to.Load(); to != nil {
		(*to).AnnotatedEventf(object, annotations, eventtype, reason, format, args...)
	}
}
