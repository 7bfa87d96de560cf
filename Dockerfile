# syntax=docker/dockerfile:1
# The program in an image of its own, run by a user that can do nothing else.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/orgstream /orgstream

FROM debian:bookworm-slim
# curl is for the health checks of docker-compose.yml.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin orgstream \
    && install -d -m 700 -o 10001 /keys /access /access/server /access/serve /access/work /access/admin /access/offline
COPY --from=build /orgstream /usr/local/bin/orgstream
USER 10001
EXPOSE 8080 8081
ENTRYPOINT ["orgstream"]
