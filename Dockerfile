# Two images of the same server:
#
#   docker build --target cuda -t sgl-dynts:cuda .
#   docker build --target cpu  -t sgl-dynts:cpu  .
#
# Both serve the demo model until they are told another one, and fetch nothing when they start:
#
#   docker run --gpus all --shm-size 8g -p 30000:30000 -v /models:/models:ro sgl-dynts:cuda \
#       --model-path /models/MODEL --attention-backend dynts --host 0.0.0.0 --port 30000

ARG SGLANG_IMAGE=lmsysorg/sglang:v0.5.23
ARG PYTHON_IMAGE=python:3.11-slim


# On SGLang's own image, which brings CUDA, torch and the kernels: only this package is added.
# hadolint ignore=DL3006
FROM ${SGLANG_IMAGE} AS cuda

WORKDIR /opt/sgl_dynts
COPY . .
RUN chmod -R a+rX . \
    && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --no-deps -e . \
    && useradd --create-home --uid 10001 dynts

ENV HF_HUB_OFFLINE=1
USER 10001
EXPOSE 30000
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:30000/health')"]
ENTRYPOINT ["python3", "-m", "sglang.launch_server"]
CMD ["--model-path", "/opt/sgl_dynts/sgl_dynts/demo/model", "--attention-backend", "dynts", \
     "--host", "0.0.0.0", "--port", "30000"]


# On plain Python, by the steps that every command of this project takes.
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS cpu

# Versions follow the release that the base image is built on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 dynts

WORKDIR /opt/sgl_dynts
COPY . .
RUN chmod -R a+rX . && UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 python3 -m sgl_dynts.environment

ENV HF_HUB_OFFLINE=1 \
    PATH=/opt/sgl_dynts/.venv/bin:$PATH
USER 10001
EXPOSE 30000
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:30000/health')"]
ENTRYPOINT ["python3", "-m", "sglang.launch_server"]
CMD ["--model-path", "/opt/sgl_dynts/sgl_dynts/demo/model", "--attention-backend", "dynts", \
     "--host", "0.0.0.0", "--port", "30000", "--max-total-tokens", "65536"]
