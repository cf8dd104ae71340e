package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/apiserver/discovery"
	"github.com/skiff-project/skiff/apiserver/managed"
	"github.com/skiff-project/skiff/apiserver/registry"
)

// serveSubresource routes a request on a subresource.
func (s *Server) serveSubresource(c *call) {
	sub := c.ep.subs[c.info.Subresource]
	if sub == nil && c.ep.custom() {
		s.fail(c, apierrors.NewNotFound(c.ep.gr, c.info.Name))
		return
	}
	if sub == nil || c.ep.reg == nil {
		s.fail(c, generic(http.StatusNotFound, ""))
		return
	}
	verb := c.info.Verb
	if sub.Name == "proxy" {
		s.proxyResource(c)
		return
	}
	if !slices.Contains(discovery.SubVerbs(sub), verb) {
		s.fail(c, methodNotAllowed(c))
		return
	}
	switch {
	case sub.View != nil:
		s.serveView(c, sub)
	case sub.Scale != nil:
		s.serveScale(c, sub)
	case sub.Name == "binding":
		s.bindPod(c)
	case sub.Name == "eviction":
		s.evict(c)
	case sub.Name == "token":
		s.requestToken(c)
	case sub.Name == "log":
		s.podLog(c)
	case sub.Name == "exec", sub.Name == "attach", sub.Name == "portforward":
		s.podStream(c, sub.Name)
	default:
		s.fail(c, statusError(http.StatusNotImplemented, metav1.StatusReasonUnknown, fmt.Sprintf("subresource %s of %s is not implemented", sub.Name, c.ep.gr)))
	}
}

// serveView serves a subresource that shows the whole object.
func (s *Server) serveView(c *call, sub *api.Subresource) {
	var it registry.Item
	var err error
	switch c.info.Verb {
	case "get":
		s.get(c)
		return
	case "update":
		it, _, err = s.updateObject(c, sub.View, sub.Name)
	case "patch":
		it, _, err = s.patchObject(c, sub.View, sub.Name)
	default:
		err = methodNotAllowed(c)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	out, err := c.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.writeItem(c, out, http.StatusOK, it)
}

// namespaceEmpty tells whether a Namespace's own finalizers are gone.
func namespaceEmpty(obj api.Object) bool {
	ns, ok := obj.(*corev1.Namespace)
	return !ok || len(ns.Spec.Finalizers) == 0
}

// terminating marks a Namespace whose deletion has begun.
func terminating(obj api.Object) {
	if ns, ok := obj.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
		ns.DeletionGracePeriodSeconds = nil
	}
}

// scaleCall is c as a request on an object that is a Scale.
func (s *Server) scaleCall(c *call, sc *api.Scale) *call {
	ep, view := *c.ep, *c
	ep.res, ep.kind, ep.codec, ep.fields = sc.Resource(), api.ScaleKind(), nil, s.managed.Scale
	ep.ver = &ep.res.Versions[0]
	view.ep = &ep
	return &view
}

func (s *Server) serveScale(c *call, sub *api.Subresource) {
	sc := sub.Scale
	view := s.scaleCall(c, sc)
	out, err := view.negotiate(true)
	if err != nil {
		s.fail(c, err)
		return
	}
	var it registry.Item
	switch c.info.Verb {
	case "get":
		it, err = c.ep.reg.Get(c.ctx(), c.info.Namespace, c.info.Name, c.query.Get("resourceVersion"))
	case "update", "patch":
		it, err = s.updateScale(c, view, sc)
	default:
		err = methodNotAllowed(c)
	}
	var obj api.Object
	if err == nil {
		obj, err = c.ep.reg.Object(it)
	}
	if err == nil && sc.Custom != nil && !sc.Custom.Has(obj) {
		err = apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", sc.Custom.Path))
	}
	var data []byte
	if err == nil {
		data, err = s.encodeOne(view, out, sc.Of(obj))
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.write(c, out.media, http.StatusOK, data)
}

// noReplicas stands for the replicas of a custom resource that tells none.
const noReplicas = math.MinInt32

// updateScale changes only the replicas of the parent object.
func (s *Server) updateScale(c, view *call, sc *api.Scale) (registry.Item, error) {
	var (
		o    writeOptions
		edit func(old api.Object) (api.Object, error)
	)
	if c.info.Verb == "patch" {
		p, err := s.parsePatch(c)
		if err != nil {
			return registry.Item{}, err
		}
		o, edit = p.writeOptions, func(old api.Object) (api.Object, error) { return s.patched(view, p, "scale", old) }
	} else {
		o = parseWriteOptions(c)
		body := &autoscalingv1.Scale{}
		if err := s.decodeBody(c, o, api.ScaleKind(), body); err != nil {
			return registry.Item{}, err
		}
		edit = func(old api.Object) (api.Object, error) {
			return s.managed.Update(view.ep.fields, "scale", old, body.DeepCopy(), managed.Name(o.manager, c.req.UserAgent())), nil
		}
	}
	w := s.writeOf(c, o.admitted, o.isDryRun())
	w.Check = nil // the plugins see the Scale, below
	u := registry.Update{Write: w}
	u.Change = func(ctx context.Context, parent api.Object) (api.Object, error) {
		old, managers := sc.Of(parent), sc.Managers(c.ep.res, c.ep.kind.GroupVersion(), parent)
		if sc.Custom != nil && !sc.Custom.Has(parent) {
			old.Spec.Replicas = noReplicas
		}
		var err error
		if old.ManagedFields, err = managers.ToSubresource(); err != nil {
			return nil, err
		}
		scale, err := registry.As[*autoscalingv1.Scale](edit(old))
		if err != nil {
			return nil, err
		}
		if err := s.checkScale(ctx, c, sc, scale, old, o); err != nil {
			return nil, err
		}
		sc.Set(parent, scale.Spec.Replicas)
		if scale.ResourceVersion != "" {
			parent.SetResourceVersion(scale.ResourceVersion)
		}
		if scale.UID != "" {
			parent.SetUID(scale.UID)
		}
		entries, err := managers.ToParent(scale.ManagedFields)
		parent.SetManagedFields(entries)
		return parent, err
	}
	it, _, err := c.ep.reg.Update(c.ctx(), u)
	return it, err
}

func (s *Server) checkScale(ctx context.Context, c *call, sc *api.Scale, scale, old *autoscalingv1.Scale, o writeOptions) error {
	if err := checkName(c, scale); err != nil {
		return err
	}
	if scale.Namespace != "" && scale.Namespace != c.info.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if sc.Custom != nil && scale.Spec.Replicas == noReplicas {
		return apierrors.NewBadRequest(fmt.Sprintf("the spec replicas field %q cannot be empty", sc.Custom.Path))
	}
	if scale.Spec.Replicas < 0 && sc.Custom == nil {
		return apierrors.NewInvalid(api.ScaleKind().GroupKind(), scale.Name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), scale.Spec.Replicas, "must be greater than or equal to 0")})
	}
	r := s.admissionRequest(c, scale, old, o.update(), o.isDryRun())
	r.Kind = api.ScaleKind()
	if err := s.admission.Admit(ctx, r); err != nil {
		return err
	}
	return s.admission.Validate(ctx, r)
}

// success is the empty success Status subresource creates answer with.
func (s *Server) success(c *call, out output, code int) {
	s.writeObject(c, out, code, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: int32(code)})
}

// subCreate is the common beginning of POST on a subresource: it decodes and
// admits the body.
func (s *Server) subCreate(c *call, kind schema.GroupVersionKind, body api.Object) (output, writeOptions, error) {
	out, err := c.negotiate(false)
	if err != nil {
		return out, writeOptions{}, err
	}
	o := parseWriteOptions(c)
	options := o.create()
	if err := o.check("CreateOptions", metavalidation.ValidateCreateOptions(options)); err != nil {
		return out, o, err
	}
	if err := s.decodeBody(c, o, kind, body); err != nil {
		return out, o, err
	}
	if c.info.Namespace != "" {
		if ns := body.GetNamespace(); ns != "" && ns != c.info.Namespace {
			return out, o, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
		}
		body.SetNamespace(c.info.Namespace)
	}
	r := s.admissionRequest(c, body, nil, options, o.isDryRun())
	r.Kind = kind
	if err := s.admission.Admit(c.ctx(), r); err != nil {
		return out, o, err
	}
	return out, o, s.admission.Validate(c.ctx(), r)
}

// bindPod serves pods/binding and bindings: it assigns a pod to a node.
func (s *Server) bindPod(c *call) {
	b := &corev1.Binding{}
	out, o, err := s.subCreate(c, corev1.SchemeGroupVersion.WithKind("Binding"), b)
	if err == nil && c.info.Subresource != "" && b.Name != c.info.Name {
		err = apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if errs := core.ValidateBinding(b); err == nil && len(errs) > 0 {
		err = errs.ToAggregate()
	}
	if err == nil {
		err = s.assign(c, b, o.isDryRun())
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.success(c, out, http.StatusCreated)
}

func (s *Server) assign(c *call, b *corev1.Binding, dryRun bool) error {
	pods := s.stores["/pods"]
	if pods == nil {
		return apierrors.NewNotFound(c.ep.gr, b.Name)
	}
	u := registry.Update{
		Write:         registry.Write{Namespace: c.info.Namespace, Name: b.Name, DryRun: dryRun},
		View:          &api.View{}, // neither spec nor status rules: this is the one way nodeName is set
		Unconditional: true,
	}
	u.Change = func(_ context.Context, obj api.Object) (api.Object, error) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, apierrors.NewInternalError(fmt.Errorf("pods are stored as %T", obj))
		}
		if b.UID != "" {
			pod.UID = b.UID
		}
		if b.ResourceVersion != "" {
			pod.ResourceVersion = b.ResourceVersion
		}
		if err := s.bind(pod, b); err != nil {
			return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, b.Name, err)
		}
		return pod, nil
	}
	_, _, err := pods.reg.Update(c.ctx(), u)
	return err
}

// bind writes the binding into the pod, or says why it cannot be bound.
func (s *Server) bind(pod *corev1.Pod, b *corev1.Binding) error {
	switch {
	case pod.DeletionTimestamp != nil:
		return fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) != 0:
		return fmt.Errorf("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	pod.Spec.NodeName = b.Target.Name
	pod.Status.NominatedNodeName = ""
	for k, v := range b.Annotations {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, k, v)
	}
	for k, v := range b.Labels {
		metav1.SetMetaDataLabel(&pod.ObjectMeta, k, v)
	}
	setPodCondition(pod, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, metav1.NewTime(s.cfg.Clock.Now()))
	return nil
}

// setPodCondition sets a condition; its transition time changes only with its status.
func setPodCondition(pod *corev1.Pod, cond corev1.PodCondition, now metav1.Time) {
	cond.LastTransitionTime = now
	for i := range pod.Status.Conditions {
		if have := &pod.Status.Conditions[i]; have.Type == cond.Type {
			if have.Status == cond.Status {
				cond.LastTransitionTime = have.LastTransitionTime
			}
			*have = cond
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, cond)
}

func (s *Server) requestToken(c *call) {
	if s.cfg.ServiceAccounts == nil {
		s.fail(c, apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts/token"}, c.info.Name))
		return
	}
	in := &authenticationv1.TokenRequest{}
	kind := authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	out, _, err := s.subCreate(c, kind, in)
	if err != nil {
		s.fail(c, err)
		return
	}
	answer, warnings, err := s.cfg.ServiceAccounts.Request(c.ctx(), c.info.Namespace, c.info.Name, in)
	if err != nil {
		s.fail(c, err)
		return
	}
	for _, w := range warnings {
		c.warn(w)
	}
	answer.SetGroupVersionKind(kind)
	s.writeObject(c, out, http.StatusCreated, answer)
}

// patchStored changes a stored object from inside the server.
func (s *Server) patchStored(ctx context.Context, gr string, namespace, name string, change func(api.Object) error) error {
	ep := s.stores[gr]
	if ep == nil {
		return errors.New("no resource " + gr + " is served")
	}
	_, _, err := ep.reg.Update(ctx, registry.Update{
		Write: registry.Write{Namespace: namespace, Name: name}, View: &api.View{}, Unconditional: true,
		Change: func(_ context.Context, obj api.Object) (api.Object, error) { return obj, change(obj) },
	})
	return err
}

func parseBool(text string) bool {
	v, err := strconv.ParseBool(text)
	return err == nil && v
}
