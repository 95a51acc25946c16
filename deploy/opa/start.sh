#!/bin/sh
# Starts OPA for the control plane at $STOCKADE_URL, on a socket beside its token.
set -eu
folder=${STOCKADE_OPA_FOLDER:-/run/stockade/opa}
STOCKADE_OPA_TOKEN=$(cat "${STOCKADE_OPA_TOKEN_FILE:-$folder/opa.token}")
export STOCKADE_OPA_TOKEN
# A killed server leaves its socket, and OPA binds to no name that is there.
rm -f "$folder/opa.sock"
here=$(dirname "$0")
exec "$here/opa" run --server --addr "unix://$folder/opa.sock" --authentication token --authorization basic \
  --skip-version-check --log-level error --shutdown-grace-period 1 --config-file "$here/config.yaml" "$here/authz.rego"
