# Image of latentddpm with the model that ships, for a CPU (the default) or for NVIDIA GPUs:
#
#     docker build --tag latentddpm:cpu .
#     docker build --tag latentddpm:gpu --target gpu .
#
# docs/guides/container.md says how to run it. CUDA comes with the wheels of the extra `gpu`; the
# host has to have a driver and the NVIDIA container toolkit.

ARG BASE=docker.io/library/python:3.12-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY docs docs
COPY configs configs
COPY weights weights
COPY latentddpm latentddpm
RUN python3 -m venv /build \
    && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE} AS base
RUN useradd --uid 1000 --create-home latentddpm \
    && install --directory --owner latentddpm --group latentddpm /data \
    && python3 -m venv /opt/latentddpm
# Everything that is written goes below /data: make it a volume, and the rest may be read-only.
ENV PATH=/opt/latentddpm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/data/.cache \
    XDG_CONFIG_HOME=/data/.config \
    KERAS_HOME=/data/.cache/keras
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["latentddpm"]
# `serve` refuses to answer other machines without a token: it is in LATENTDDPM_TOKEN.
CMD ["serve", "emoji-128", "--host", "0.0.0.0", "--port", "7860", "--out", "/data/drawings"]

FROM base AS gpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(ls /wheels/latentddpm-*.whl)[gpu,ui,hub,plot]"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000

FROM base AS cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(ls /wheels/latentddpm-*.whl)[ui,hub,plot]"
USER 1000:1000
