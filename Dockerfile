# Every role of Stockade in one image; the command says which. The build uses no network but for bubblewrap, where the
# base lacks it: `make wheels` puts the locked packages into .image/ first, `make base` makes a base without a registry.
#   make wheels base && docker build --build-arg BASE=stockade-base:bookworm -t stockade:local .
# A base of another Python:  make wheels WHEELS_PYTHON=3.12 && docker build --build-arg BASE=python:3.12-slim .
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
LABEL org.opencontainers.image.title="stockade-build"
COPY .image/requirements.txt .image/wheels/ /wheels/
RUN python3 -m venv /opt/stockade && /opt/stockade/bin/pip install --disable-pip-version-check --no-cache-dir -q \
      --no-index --find-links /wheels --require-hashes -r /wheels/requirements.txt
COPY .image/own/ /own/
RUN /opt/stockade/bin/pip install --disable-pip-version-check --no-cache-dir -q --no-index --no-deps /own/*.whl && \
    /opt/stockade/bin/pip uninstall --disable-pip-version-check -q -y pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="stockade" org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Control plane, gateway and node of Stockade"
# Empty volumes take over the owner of the folders they are mounted on.
RUN command -v bwrap >/dev/null || { apt-get update && apt-get install -y --no-install-recommends bubblewrap && \
      rm -rf /var/lib/apt/lists/*; } && \
    useradd --system --uid 10001 --home-dir /var/lib/stockade --no-create-home stockade && \
    install -d -o stockade -g stockade -m 0700 /var/lib/stockade /run/stockade/keys /run/stockade/opa && \
    install -d -o stockade -g stockade -m 0755 /run/stockade/join
COPY --from=build /opt/stockade /opt/stockade
ENV PATH=/opt/stockade/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/var/lib/stockade XDG_DATA_HOME=/var/lib/stockade XDG_CACHE_HOME=/var/lib/stockade/cache \
    STOCKADE_STATE_DIR=/var/lib/stockade/control STOCKADE_HOST=0.0.0.0 STOCKADE_PORT=7373
USER stockade
VOLUME /var/lib/stockade
EXPOSE 7373
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "controlplane.health"]
# A node:  docker run --user 0 … IMAGE stockade node --url https://HOST --join-token-file /run/stockade/join/token
CMD ["python", "-m", "controlplane"]
