package apiserver

// serveOpenAPI serves the OpenAPI documents.
func (s *Server) serveOpenAPI(c *call, path string) { s.notThere(c, path) }
