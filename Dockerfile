# One image for both roles: `slicebw agent` (root with NET_ADMIN and nothing else) and `slicebw controller` (nobody).
#
#   make image          with buildah; the base is made from this machine's mirror of Debian (hack/image --help)
#   docker build .      anywhere else; add --build-arg VERSION=... as hack/image does, for the version's label
#
# BASE is a Debian 12 with Python 3.11 as python3: the registry's, which has pip and apt but no nft, or hack/image's,
# which has nft and needs neither. Layers are ordered by how often they change: a change of code rebuilds the last only.
ARG BASE=docker.io/library/python:3.11-slim-bookworm


# What slicebw imports, in a virtual environment without pip. From build/wheels where hack/image has put them there,
# else from the index that pip is configured with; the hashes hold either way.
FROM ${BASE} AS packages
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
COPY hack/image-build-pip requirements-build.lock requirements-runtime.lock build/wheel[s] /wheels/
RUN python3 -m venv --without-pip /opt/slicebw \
 && /wheels/image-build-pip install --require-hashes --only-binary :all: --no-deps --no-compile \
      -r /wheels/requirements-runtime.lock \
 && rm -r /opt/slicebw/include && find /opt/slicebw/bin -type f -delete \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/slicebw/lib


# slicebw itself, in /code/opt/slicebw. The tools that build it stay behind in this stage.
FROM packages AS code
RUN /wheels/image-build-pip install --require-hashes --only-binary :all: --no-deps --no-compile \
      -r /wheels/requirements-build.lock
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
ARG VERSION=unknown
RUN /wheels/image-build-pip install --no-index --no-build-isolation --no-deps --no-compile --root /code /src \
 && built=$(PYTHONPATH=/src/operator python3 -c 'from slicebw import __version__; print(__version__)') \
 && case ${VERSION} in "$built"|unknown) ;; *) echo "VERSION is ${VERSION}, but this is slicebw $built" >&2; exit 1;; esac \
 && python3 -m compileall -q --invalidation-mode unchecked-hash -s /code /code


FROM ${BASE}
# The registry's base lacks nft and the standard library's bytecode (nobody can write it at run time, and start-up would
# take several times as long), and has pip; none of this changes hack/image's.
RUN set -eu; \
    if ! command -v nft >/dev/null; then \
      apt-get -q update; apt-get -q -y install --no-install-recommends nftables; rm -rf /var/lib/apt/lists/*; \
    fi; \
    if python3 -m pip --version >/dev/null 2>&1; then \
      PYTHONDONTWRITEBYTECODE=1 python3 -m pip uninstall --yes --root-user-action ignore setuptools wheel pip; \
    fi; \
    library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))'); \
    rm -rf "$library/ensurepip/_bundled" /root/.cache; \
    python3 -m compileall -q -x '/(test|tests|idlelib|lib2to3|turtledemo|tkinter|site-packages|dist-packages)/' "$library"; \
    mkdir -p /var/lib/slicebw
COPY --from=packages /opt/slicebw /opt/slicebw
COPY --from=code /code/ /

ENV PATH=/opt/slicebw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1
# Whoever forgets to say as whom gets nobody in particular; the agent's DaemonSet says 0.
USER 65532:65532
WORKDIR /
ENTRYPOINT ["slicebw"]
CMD ["--help"]

ARG BASE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="slicebw" \
      org.opencontainers.image.description="Fair, guaranteed and budgeted shares of each node's uplink for every slice of a Kubernetes testbed" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
