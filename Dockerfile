# Two images: `control` for everything that needs no model (migrate, api, beat, flower), `node` with the engine's
# packages on top. Neither runs as root, and both start in an empty directory, because Celery puts the current one on the
# import path.

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm AS control
ENV PATH=/opt/millrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MILLRACE_DATA_DIR=/var/lib/millrace
RUN groupadd --gid 10001 millrace \
    && useradd --uid 10001 --gid millrace --home-dir /var/lib/millrace --create-home --shell /usr/sbin/nologin millrace \
    && install --directory --owner millrace --group millrace /var/empty/millrace \
    && python -m venv /opt/millrace
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl
USER millrace
WORKDIR /var/empty/millrace
CMD ["millrace", "--help"]

FROM control AS node
# Given to pip, for example to choose a build of PyTorch.
ARG PIP_FLAGS=""
USER root
# The engine compiles its kernels for the processor that it finds itself on, as Triton does for a GPU.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN for wheel in /wheels/*.whl; do pip install --no-cache-dir $PIP_FLAGS "$wheel[engine]"; done
USER millrace
ENV HF_HOME=/var/lib/millrace/huggingface
CMD ["millrace", "node"]
