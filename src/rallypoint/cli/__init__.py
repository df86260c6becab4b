"""The command line: `rallypoint run`, `serve`, `status`, `close`, `env` and others."""
