"""The control plane: API, durable journal, controller, authorization, secrets, artifacts."""
