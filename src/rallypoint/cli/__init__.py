"""What a person types: `rallypoint run`, `serve`, `status`, `close`, `env`."""
