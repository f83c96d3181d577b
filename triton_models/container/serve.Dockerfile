# What compose.yaml runs: Triton without root. Change a copy: the manifest of the bundle has this file's hash.
# Its authors had no Docker: nothing here was ever built. Tried without it: the lines of CMD and the health check's
# address, with a real Triton 2.51.

# The release of Triton's container; engines run only with the TensorRT of the release that built them. Releases before
# 26.07 have known critical vulnerabilities. The digest of the image was never seen by its authors: pin it where you can.
ARG TRITON_TAG=26.07

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}-py3 AS serve

RUN printf '%s\n' 26.07 "${NVIDIA_TRITON_SERVER_VERSION}" | sort --check --version-sort || \
    { echo "Triton ${NVIDIA_TRITON_SERVER_VERSION} has critical vulnerabilities, expected 26.07 or later" >&2; exit 1; }

# What decodes the images of the ensemble "encoded"; the image has Python and NumPy. Without it that ensemble answers with
# an error, and everything else is served. Behind a proxy: --build-arg https_proxy=...
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip3 install --no-cache-dir --only-binary=:all: "Pillow>=10.3,<14"

# triton-server, which the image has; a number, so that Kubernetes sees that it is not root.
USER 1000:1000

# The model repository of the bundle is mounted on /models, read-only. Nothing is copied: this image fits every bundle.
EXPOSE 8000 8001 8002

# It asks for an answer. The server's own address v2/health/ready also says yes if a model's process hangs or is dead.
COPY healthcheck.py /usr/local/share/dfer-deploy/
HEALTHCHECK --interval=15s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python3", "/usr/local/share/dfer-deploy/healthcheck.py"]

# Interfaces that change what the server does ask for a header that no request can have: gRPC's names of headers are in
# lower case, HTTP's values have no line break. With DFER_DEPLOY_KEY they ask for "dfer-deploy" (gRPC:
# "triton-grpc-protocol-dfer-deploy") with its value, which every user of the container's host can read in the list of
# processes. The list of models is open. TRITON_OPTIONS is for options of your own, for example --backend-config=tensorrt,version-compatible=true for engines
# that carry code. The image's own entry point runs this line.
CMD key="$(printf 'Dfer-Deploy=sent by\nnobody')" && \
    restricted="shared-memory,trace,logging:${DFER_DEPLOY_KEY:+dfer-deploy=}${DFER_DEPLOY_KEY:-${key}}" && \
    umask 077 && \
    exec tritonserver \
        --model-repository=/models \
        --model-control-mode=none \
        --disable-auto-complete-config \
        --strict-readiness=true \
        --http-restricted-api="${restricted}" \
        --grpc-restricted-protocol="${restricted}" \
        --exit-timeout-secs=30 \
        ${TRITON_OPTIONS}
