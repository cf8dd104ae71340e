package oidc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

// maxAnswer bounds what an issuer may answer, in bytes.
const maxAnswer = 3 << 20

// client asks issuers; seen is told of each answer.
func (i *Issuer) client(seen func([]byte, error)) *http.Client {
	return &http.Client{Transport: bounded{i.transport, seen}, Timeout: answerTime}
}

// get fetches a document.
func (i *Issuer) get(ctx context.Context, url, token string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("while calling %v: %w", url, err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := i.client(nil).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s: %s", url, resp.Status, body[:min(len(body), 1000)])
	}
	return body, nil
}

// bounded reads answers as a whole, up to a bound.
type bounded struct {
	base http.RoundTripper
	seen func([]byte, error) // nil: nobody looks
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, body, err := b.trip(req)
	if b.seen != nil {
		fault := err
		if err == nil && resp.StatusCode != http.StatusOK {
			fault = fmt.Errorf("the answer is %s", resp.Status)
		}
		b.seen(body, fault)
	}
	return resp, err
}

func (b bounded) trip(req *http.Request) (*http.Response, []byte, error) {
	resp, err := b.base.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("%s answered with more than %d bytes", req.URL, maxAnswer)
	}
	if err != nil {
		return nil, nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, body, nil
}
