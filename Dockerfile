# Control plane and node in one image; the command says which. The base is an argument: mirrors differ.
#   docker build --build-arg BASE=python:3.13-slim -t stockade .
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
WORKDIR /src
RUN python -m venv /opt/uv && /opt/uv/bin/pip install -q uv==0.13.9
ENV UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/stockade UV_LINK_MODE=copy
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN /opt/uv/bin/uv sync --frozen --no-dev --extra all --no-install-project
COPY . .
RUN /opt/uv/bin/uv sync --frozen --no-dev --extra all --no-editable

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --home-dir /var/lib/stockade --create-home stockade
COPY --from=build /opt/stockade /opt/stockade
ENV PATH=/opt/stockade/bin:$PATH XDG_DATA_HOME=/var/lib/stockade XDG_CACHE_HOME=/var/lib/stockade/cache \
    STOCKADE_STATE_DIR=/var/lib/stockade/control STOCKADE_HOST=0.0.0.0 STOCKADE_PORT=7373
USER stockade
VOLUME /var/lib/stockade
EXPOSE 7373
# A node:  docker run … IMAGE stockade node --url https://HOST --join-token-file /run/secrets/join
CMD ["python", "-m", "controlplane"]
