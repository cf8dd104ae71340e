package openapi

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
)

// DefaultMergeRules are the merge rules of the built-in types that client-go
// ships for its apply configurations. The schema behind them is parsed on
// first use and stays in memory, shared with server-side apply where that uses
// applyconfigurations.NewTypeConverter too.
func DefaultMergeRules() ([]smd.TypeDef, error) {
	sample := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}}
	value, err := applyconfigurations.NewTypeConverter(scheme.Scheme).ObjectToTyped(sample)
	if err != nil {
		return nil, fmt.Errorf("openapi: read merge rules: %w", err)
	}
	return value.Schema().Types, nil
}
