package scheduler

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/scheduler/core"
)

// maxNote is the most bytes an event's note may have.
const maxNote = 1024

// bind makes an assumption true. Where claims have to get volumes on the node
// first, that is begun instead, and the pod's turn comes again.
func (s *Scheduler) bind(ctx context.Context, e *entry, node string) {
	pod := e.pod.Pod
	if l := s.facts.late(pod); len(l.claims) > 0 {
		err := s.claimVolumes(ctx, l, node)
		s.unplace(e)
		if err != nil && ctx.Err() == nil {
			s.reportFailure(ctx, pod, v1.PodReasonSchedulerError, fmt.Sprintf("running PreBind plugin %q: %v", core.VolumeBinding, err), "")
		}
		return
	}
	err := s.cfg.Client.CoreV1().Pods(pod.Namespace).Bind(ctx, &v1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     v1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err == nil {
		s.cfg.Recorder.Eventf(pod, nil, v1.EventTypeNormal, "Scheduled", "Binding", "Successfully assigned %v/%v to %v", pod.Namespace, pod.Name, node)
		return
	}
	if ctx.Err() != nil {
		return
	}
	s.unplace(e)
	if apierrors.IsNotFound(err) {
		return // deleted; the watch takes it out of the queue
	}
	s.cfg.Log.Warn("binding failed, the pod will be tried again", "pod", pod.Namespace+"/"+pod.Name, "node", node, "err", err)
	s.reportFailure(ctx, pod, v1.PodReasonSchedulerError, fmt.Sprintf("running Bind plugin %q: %v", "DefaultBinder", err), "")
}

// reportFailure tells in an event and in the pod's status why it has no node.
func (s *Scheduler) reportFailure(ctx context.Context, pod *v1.Pod, reason, message, nominated string) {
	note := message
	if len(note) > maxNote {
		const more = " ..."
		note = note[:maxNote-len(more)] + more
	}
	s.cfg.Recorder.Eventf(pod, nil, v1.EventTypeWarning, "FailedScheduling", "Scheduling", "%s", note)
	status := map[string]any{}
	if cond := failedCondition(pod, reason, message); cond != nil {
		status["conditions"] = []any{cond}
	}
	if nominated != "" && nominated != pod.Status.NominatedNodeName {
		status["nominatedNodeName"] = nominated
	}
	s.patchStatus(ctx, pod, status)
}

// failedCondition returns the PodScheduled condition to write, nil if the pod
// has it already.
func failedCondition(pod *v1.Pod, reason, message string) map[string]any {
	transition := metav1.Now().Rfc3339Copy()
	for _, c := range pod.Status.Conditions {
		if c.Type != v1.PodScheduled {
			continue
		}
		if c.Status == v1.ConditionFalse {
			if c.Reason == reason && c.Message == message {
				return nil
			}
			transition = c.LastTransitionTime
		}
	}
	cond := map[string]any{
		"type": v1.PodScheduled, "status": v1.ConditionFalse, "reason": reason, "message": message,
		"lastTransitionTime": transition, "lastProbeTime": nil,
	}
	if pod.Generation != 0 {
		cond["observedGeneration"] = pod.Generation
	}
	return cond
}

// patchStatus merges fields into a pod's status. The UID makes sure that it is
// the same pod still.
func (s *Scheduler) patchStatus(ctx context.Context, pod *v1.Pod, status map[string]any) {
	if len(status) == 0 {
		return
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err == nil {
		_, err = s.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	}
	if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		s.cfg.Log.Warn("could not write a pod's status", "pod", pod.Namespace+"/"+pod.Name, "err", err)
	}
}

// preempt deletes the pods that stand in a more important pod's way.
func (s *Scheduler) preempt(ctx context.Context, pod *v1.Pod, victims []*core.Pod, node string) {
	for _, victim := range victims {
		if victim.DeletionTimestamp != nil {
			continue
		}
		s.patchStatus(ctx, victim.Pod, map[string]any{"conditions": []any{map[string]any{
			"type": v1.DisruptionTarget, "status": v1.ConditionTrue, "reason": v1.PodReasonPreemptionByScheduler,
			"message":            fmt.Sprintf("%s: preempting to accommodate a higher priority pod", pod.Spec.SchedulerName),
			"lastTransitionTime": metav1.Now().Rfc3339Copy(), "lastProbeTime": nil,
		}}})
		err := s.cfg.Client.CoreV1().Pods(victim.Namespace).Delete(ctx, victim.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &victim.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			s.cfg.Log.Warn("could not preempt a pod", "pod", victim.Namespace+"/"+victim.Name, "err", err)
			continue
		}
		s.cfg.Recorder.Eventf(victim.Pod, pod, v1.EventTypeNormal, "Preempted", "Preempting", "Preempted by pod %v on node %v", pod.UID, node)
	}
}
