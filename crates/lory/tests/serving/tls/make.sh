#!/bin/sh
# Makes the certificate of the tests: its own issuer, for localhost, for a hundred years.
cd "$(dirname "$0")" && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=localhost \
    -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem
