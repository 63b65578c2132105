#!/bin/sh
# Fetches the two texts that the example models and the real merge are trained on, and splits each into
# a training part and a held-out part:  fetch_texts.sh OUT
#
# Needs a Debian 12 machine with apt-get, dpkg and python3. Both texts come out of Debian packages:
#   technical   Python's library reference (python3.11-doc, PSF licence), reStructuredText sources
#   scripture   King James Version (bible-kjv-text, public domain), printed by the reader of bible-kjv
set -eu

out=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

cd "$out"
apt-get download python3.11-doc bible-kjv bible-kjv-text
for package in *.deb; do
    dpkg -x "$package" packages
done

# The reader looks for its data file in the working directory.
(cd packages/usr/lib && ../bin/bible -f 'Genesis1:1-Revelation22:21' >"$out/scripture.raw")

python3 "$here/split_texts.py" "$out"
