package dns

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

const (
	publishNamespace = "kube-system"
	publishService   = "kube-dns"
	// managedBy keeps other controllers' hands off the slice.
	managedBy    = "dns.skiff.dev"
	publishFirst = 200 * time.Millisecond
	publishLast  = 10 * time.Second
)

// SliceFor is this node's EndpointSlice of the Service kube-system/kube-dns. The node owns
// it, so that it goes with the node.
func SliceFor(node *corev1.Node, addr string, port int32) *discoveryv1.EndpointSlice {
	family := discoveryv1.AddressTypeIPv4
	if strings.Contains(addr, ":") {
		family = discoveryv1.AddressTypeIPv6
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: publishNamespace, Name: publishService + "-" + node.Name,
			Labels:          map[string]string{discoveryv1.LabelServiceName: publishService, discoveryv1.LabelManagedBy: managedBy},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		},
		AddressType: family,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{addr}, NodeName: ptr.To(node.Name),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
		}},
		Ports: []discoveryv1.EndpointPort{
			{Name: ptr.To("dns"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To(port)},
			{Name: ptr.To("dns-tcp"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(port)},
		},
	}
}

// keepSlice creates this node's slice and puts it right whenever somebody changes or
// removes it, until ctx ends.
func (s *Server) keepSlice(ctx context.Context) {
	var port int32
	for _, a := range s.Addrs() {
		if a.Addr() == s.cfg.Advertise {
			port = int32(a.Port())
		}
	}
	if port == 0 {
		s.log.Error("the advertised DNS address is not listened on, so it is not published", "address", s.cfg.Advertise)
		return
	}
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	poke := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil && key == publishNamespace+"/"+publishService+"-"+s.cfg.NodeName {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
	inf := s.cfg.Informers.Discovery().V1().EndpointSlices().Informer()
	handle, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(_, obj any) { poke(obj) }, DeleteFunc: poke})
	if err == nil {
		defer func() { _ = inf.RemoveEventHandler(handle) }()
	}
	retry := publishFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		if err := s.publish(ctx, port); err != nil && ctx.Err() == nil {
			s.log.Debug("the DNS server is not published yet", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-s.cfg.Clock.After(retry):
			}
			retry = min(2*retry, publishLast)
			select {
			case wake <- struct{}{}:
			default:
			}
			continue
		}
		retry = publishFirst
	}
}

// publish creates the slice, or updates it if it is not as it should be.
func (s *Server) publish(ctx context.Context, port int32) error {
	node, err := s.cfg.Client.CoreV1().Nodes().Get(ctx, s.cfg.NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("publish DNS server: get node %s: %w", s.cfg.NodeName, err)
	}
	want := SliceFor(node, s.cfg.Advertise.String(), port)
	api := s.cfg.Client.DiscoveryV1().EndpointSlices(publishNamespace)
	have, err := api.Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return fmt.Errorf("publish DNS server: %w", err)
	}
	if have.AddressType != want.AddressType {
		// The address type cannot be changed.
		if err := api.Delete(ctx, want.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("publish DNS server: %w", err)
		}
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	}
	same := equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) && equality.Semantic.DeepEqual(have.Ports, want.Ports) &&
		have.Labels[discoveryv1.LabelServiceName] == publishService && have.Labels[discoveryv1.LabelManagedBy] == managedBy &&
		len(have.OwnerReferences) == 1 && have.OwnerReferences[0].UID == node.UID
	if same {
		return nil
	}
	want.ResourceVersion = have.ResourceVersion
	_, err = api.Update(ctx, want, metav1.UpdateOptions{})
	return err
}
