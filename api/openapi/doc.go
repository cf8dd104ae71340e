// Package openapi builds the OpenAPI documents of the served resources.
package openapi
