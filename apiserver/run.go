package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/skiff-project/skiff/apiserver/peers"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/internal/h2"
)

func (s *Server) background() context.Context { return context.Background() }

// Run serves until ctx ends, then ends the watches and waits for requests in
// flight. It bootstraps the objects a cluster needs and compacts the store.
// A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	work, end := context.WithCancel(context.WithoutCancel(ctx)) // what requests need, to the last of them
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	defer cancel()
	wg.Go(func() {
		if s.bootstrapLoop(work); work.Err() == nil {
			s.identity.Run(work)
		}
	})
	if s.cfg.CompactionInterval > 0 {
		for _, st := range registry.Stores(s.cfg.Store) {
			wg.Go(func() { peers.Compact(work, st, s.cfg.CompactionInterval, s.cfg.Clock, s.cfg.Log) })
		}
	}
	wg.Go(func() { s.followFlows(work) })
	wg.Go(func() { s.repairLoop(work) })
	if s.customs.Table != nil {
		wg.Go(func() { s.customs.Run(work) })
	}
	if s.aggregator != nil {
		wg.Go(func() { s.aggregator.Run(work) })
	}
	if s.cfg.SharedStore && s.cfg.AdvertiseAddress.IsValid() && !s.cfg.NoEndpoints {
		wg.Go(func() { s.servers.Run(ctx) }) // takes the server's address away at once
	}
	if s.cfg.TLS == nil {
		s.ready.Store(true)
		<-ctx.Done()
		close(s.stopping)
		return nil
	}
	ln := s.cfg.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", s.cfg.Address); err != nil {
			return fmt.Errorf("API server cannot listen on %s: %w; free the port or choose another", s.cfg.Address, err)
		}
	}
	return s.serveTLS(ctx, ln)
}

func (s *Server) serveTLS(ctx context.Context, ln net.Listener) error {
	srv := s.httpServer()
	failed := make(chan error, 1)
	go func() { failed <- srv.ServeTLS(h2.Listen(ln), "", "") }()
	s.ready.Store(true)
	select {
	case err := <-failed:
		close(s.stopping)
		return fmt.Errorf("API server stopped serving: %w", err)
	case <-ctx.Done():
	}
	if err := s.shutdown.Begin(failed); err != nil {
		close(s.stopping)
		return fmt.Errorf("API server stopped serving before its end: %w", err)
	}
	close(s.stopping)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Shutdown.Watches+s.cfg.ShutdownGrace)
	defer cancel()
	s.shutdown.Wait(grace)
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		s.cfg.Log.Info("closing connections that did not end in time", "grace", s.cfg.Shutdown.Watches+s.cfg.ShutdownGrace)
		err = srv.Close()
	}
	<-failed
	return err
}

// httpServer has a bound on everything a client could stretch.
func (s *Server) httpServer() *http.Server {
	conf := s.cfg.TLS.Clone()
	conf.ClientAuth = tls.RequestClientCert
	conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
	switch {
	case s.cfg.NoHTTP2:
		conf.NextProtos = []string{"http/1.1"}
	case len(conf.NextProtos) == 0:
		conf.NextProtos = []string{"h2", "http/1.1"}
	}
	srv := &http.Server{
		Handler:           s.cfg.Front.Wrap(s.shutdown.Wrap(s.Handler())),
		TLSConfig:         conf,
		ReadHeaderTimeout: 32 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          s.metrics.ErrorLog(s.cfg.Log.Handler()),
	}
	if s.cfg.NoHTTP2 {
		srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // net/http's own neither
		return srv
	}
	h2.Attach(srv, h2.Config{MaxStreams: s.cfg.MaxStreams, StreamWindow: 1 << 20, ConnWindow: 4 << 20, IdleTimeout: srv.IdleTimeout, Log: s.cfg.Log})
	return srv
}
