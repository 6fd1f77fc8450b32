# One image for every role: `gateway` (the default), `worker`, `check`, ...
FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/bff && python -m venv /opt/build
COPY requirements.lock requirements-build.lock ./
RUN /opt/bff/bin/pip install --require-hashes --requirement requirements.lock \
 && /opt/build/bin/pip install --require-hashes --requirement requirements-build.lock
COPY . .
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /dist \
 && /opt/bff/bin/pip install --no-deps --no-index /dist/*.whl \
 && /opt/bff/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim
# A numeric user, so that an orchestrator can see that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin bff
COPY --from=build /opt/bff /opt/bff
COPY agents.yaml /etc/bff/agents.yaml
ENV PATH=/opt/bff/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BFF_HOST=0.0.0.0 \
    BFF_PORT=8000 \
    BFF_CONFIG=/etc/bff/agents.yaml
USER 10001:10001
WORKDIR /etc/bff
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["bff"]
CMD ["gateway"]
