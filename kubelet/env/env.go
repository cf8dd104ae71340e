package env

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Var is one environment variable.
type Var struct{ Name, Value string }

// Sources are where the environment's values come from.
type Sources struct {
	ConfigMap func(namespace, name string) (*v1.ConfigMap, error)
	Secret    func(namespace, name string) (*v1.Secret, error)
	// File reads one key of an env file in a volume; found is false when the key is not there.
	File     func(volume, path, key string) (value string, found bool, err error)
	Services []*v1.Service // of the pod's namespace and default/kubernetes
	PodIPs   []string
	Node     Node
}

// Make computes the environment of a container: services first, then envFrom, then env, later
// ones winning; the result is sorted by name.
func Make(pod *v1.Pod, c *v1.Container, src Sources) ([]Var, error) {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	services := serviceVars(pod.Namespace, links, src.Services)
	m := &maker{pod: pod, c: c, src: src, vars: map[string]string{},
		configMaps: map[string]*v1.ConfigMap{}, secrets: map[string]*v1.Secret{}}
	for i := range c.EnvFrom {
		if err := m.from(&c.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	lookup := func(name string) (string, bool) {
		if v, ok := m.vars[name]; ok {
			return v, true
		}
		v, ok := services[name]
		return v, ok
	}
	for i := range c.Env {
		e := &c.Env[i]
		value, ok := Expand(e.Value, lookup), true
		if e.Value == "" && e.ValueFrom != nil {
			var err error
			if value, ok, err = m.value(e.ValueFrom); err != nil {
				return nil, err
			}
		}
		if ok {
			m.vars[e.Name] = value
		}
	}
	for k, v := range services {
		if _, ok := m.vars[k]; !ok {
			m.vars[k] = v
		}
	}
	out := make([]Var, 0, len(m.vars))
	for k, v := range m.vars {
		out = append(out, Var{k, v})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// Map returns the variables by name.
func Map(vars []Var) map[string]string {
	m := make(map[string]string, len(vars))
	for _, v := range vars {
		m[v.Name] = v.Value
	}
	return m
}

type maker struct {
	pod        *v1.Pod
	c          *v1.Container
	src        Sources
	vars       map[string]string
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
}

func isTrue(b *bool) bool { return b != nil && *b }

func (m *maker) configMap(name string, optional bool) (*v1.ConfigMap, error) {
	return read(m.configMaps, m.src.ConfigMap, m.pod.Namespace, name, optional)
}

func (m *maker) secret(name string, optional bool) (*v1.Secret, error) {
	return read(m.secrets, m.src.Secret, m.pod.Namespace, name, optional)
}

// read takes an object from those read before, else from get; an optional one that is not there is nil.
func read[T any](before map[string]*T, get func(namespace, name string) (*T, error), namespace, name string, optional bool) (*T, error) {
	if o, ok := before[name]; ok {
		return o, nil
	}
	o, err := get(namespace, name)
	if apierrors.IsNotFound(err) && optional {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	before[name] = o
	return o, nil
}

func (m *maker) from(f *v1.EnvFromSource) error {
	switch {
	case f.ConfigMapRef != nil:
		cm, err := m.configMap(f.ConfigMapRef.Name, isTrue(f.ConfigMapRef.Optional))
		if err != nil || cm == nil {
			return err
		}
		for k, v := range cm.Data {
			m.vars[f.Prefix+k] = v
		}
	case f.SecretRef != nil:
		s, err := m.secret(f.SecretRef.Name, isTrue(f.SecretRef.Optional))
		if err != nil || s == nil {
			return err
		}
		for k, v := range s.Data {
			m.vars[f.Prefix+k] = string(v)
		}
	}
	return nil
}

// value resolves a source; ok is false when an optional one is absent.
func (m *maker) value(f *v1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case f.FieldRef != nil:
		value, err = Field(m.pod, f.FieldRef.FieldPath, m.src.PodIPs, m.src.Node)
		return value, err == nil, err
	case f.ResourceFieldRef != nil:
		value, err = Resource(m.pod, m.c, f.ResourceFieldRef, m.src.Node)
		return value, err == nil, err
	case f.ConfigMapKeyRef != nil:
		r := f.ConfigMapKeyRef
		cm, err := m.configMap(r.Name, isTrue(r.Optional))
		if err != nil || cm == nil {
			return "", false, err
		}
		if value, ok = cm.Data[r.Key]; !ok && !isTrue(r.Optional) {
			err = fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", r.Key, m.pod.Namespace, r.Name)
		}
		return value, ok, err
	case f.SecretKeyRef != nil:
		r := f.SecretKeyRef
		s, err := m.secret(r.Name, isTrue(r.Optional))
		if err != nil || s == nil {
			return "", false, err
		}
		b, ok := s.Data[r.Key]
		if !ok && !isTrue(r.Optional) {
			err = fmt.Errorf("couldn't find key %v in Secret %v/%v", r.Key, m.pod.Namespace, r.Name)
		}
		return string(b), ok, err
	case f.FileKeyRef != nil:
		r := f.FileKeyRef
		value, ok, err = m.src.File(r.VolumeName, r.Path, r.Key)
		if err == nil && !ok && !isTrue(r.Optional) {
			err = fmt.Errorf("environment variable key %q not found in file %q", r.Key, r.Path)
		}
		return value, ok, err
	}
	return "", true, nil
}

// serviceVars are the variables of the services a pod may see: its namespace's, and always the
// API server's.
func serviceVars(namespace string, links bool, services []*v1.Service) map[string]string {
	pick := map[string]*v1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		if s.Namespace == namespace && links {
			pick[s.Name] = s
		} else if s.Namespace == "default" && s.Name == "kubernetes" && pick[s.Name] == nil {
			pick[s.Name] = s
		}
	}
	out := map[string]string{}
	for _, s := range pick {
		serviceEnv(out, s)
	}
	return out
}

func serviceEnv(out map[string]string, s *v1.Service) {
	prefix := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	ip := s.Spec.ClusterIP
	out[prefix+"_SERVICE_HOST"] = ip
	out[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		if p.Name != "" {
			out[prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = strconv.Itoa(int(p.Port))
		}
		proto := string(p.Protocol)
		if proto == "" {
			proto = "TCP"
		}
		url := fmt.Sprintf("%s://%s", strings.ToLower(proto), net.JoinHostPort(ip, strconv.Itoa(int(p.Port))))
		if i == 0 {
			out[prefix+"_PORT"] = url
		}
		port := fmt.Sprintf("%s_PORT_%d_%s", prefix, p.Port, strings.ToUpper(proto))
		out[port] = url
		out[port+"_PROTO"] = strings.ToLower(proto)
		out[port+"_PORT"] = strconv.Itoa(int(p.Port))
		out[port+"_ADDR"] = ip
	}
}
