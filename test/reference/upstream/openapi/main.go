// Command openapi prints, as JSON, how upstream's kube-apiserver describes
// types in OpenAPI v3: those named by its arguments and all they refer to.
package main

import (
	"encoding/json"
	"log"
	"os"

	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/controlplane" // fills legacyscheme
	generated "k8s.io/kubernetes/pkg/generated/openapi"
)

func main() {
	namer := openapi.NewDefinitionNamer(legacyscheme.Scheme, extensions.Scheme, aggregator.Scheme)
	schemas, err := builder3.BuildOpenAPIDefinitionsForResources(&common.OpenAPIV3Config{
		GetDefinitions: generated.GetOpenAPIDefinitions, GetDefinitionName: namer.GetDefinitionName,
	}, os.Args[1:]...)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(schemas)
	}
	if err != nil {
		log.Fatal(err)
	}
}
