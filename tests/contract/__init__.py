"""What the service promises in its OpenAPI description, held against the running product."""
