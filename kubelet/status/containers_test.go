package status_test

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/status"
)

// Every container that has not started says why it waits, one seen between its
// creation and its start too.
func TestNotStartedContainersSayWhyTheyWait(t *testing.T) {
	plain := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
	withInit := plain.DeepCopy()
	withInit.Spec.InitContainers = []v1.Container{{Name: "i"}}
	for name, c := range map[string]struct {
		pod     *v1.Pod
		runtime podstate.Runtime
		want    string
	}{
		"unknown":         {plain, podstate.Runtime{}, "ContainerCreating"},
		"created":         {plain, podstate.Runtime{Containers: []podstate.Container{{Name: "c", ID: "1", State: podstate.Created}}}, "ContainerCreating"},
		"init is created": {withInit, podstate.Runtime{Containers: []podstate.Container{{Name: "i", ID: "1", State: podstate.Created}}}, "PodInitializing"},
	} {
		t.Run(name, func(t *testing.T) {
			s := status.Generate(status.Input{Pod: c.pod, Runtime: &c.runtime, Scheme: "skiff", Now: time.Unix(0, 0)})
			for _, st := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
				if st.State.Waiting == nil || st.State.Waiting.Reason != c.want {
					t.Errorf("%s: %+v, want waiting with reason %s", st.Name, st.State, c.want)
				}
			}
		})
	}
}
