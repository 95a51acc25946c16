# The OPA server beside a control plane that has STOCKADE_POLICY_ENGINE=opa; `make wheels` puts its program into .image/.
#   docker build -f deploy/opa.Dockerfile --build-arg BASE=stockade-base:bookworm -t stockade-opa:local .
ARG BASE=python:3.11-slim
FROM ${BASE}
LABEL org.opencontainers.image.title="stockade-opa" org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Open Policy Agent, configured to decide for Stockade"
RUN useradd --system --uid 10001 --no-create-home stockade && \
    install -d -o stockade -g stockade -m 0700 /run/stockade/opa
COPY .image/opa/ /opt/opa/
ENV GOGC=800 GOMEMLIMIT=512MiB
USER stockade
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python3", "/opt/opa/health.py"]
# The token is read from its file: what is in a container's configuration, many may see.
CMD ["/opt/opa/start.sh"]
