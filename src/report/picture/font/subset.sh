#!/usr/bin/env bash
# Cuts DejaVuSans.ttf (2.37, of Debian's fonts-dejavu-core) down to what is shipped here: Latin, Greek, common signs.
#
#   bash subset.sh /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf      needs fonttools 4.68.0 (pip)
set -euo pipefail
from=$1
cd "$(dirname "${BASH_SOURCE[0]}")"
latin=U+20-7E,U+A0-FF,U+100-17F,U+2BC,U+2C6,U+2C7,U+2D8-2DD
greek=U+391-3A9,U+3B1-3C9
marks=U+2010-2015,U+2018-201E,U+2020-2022,U+2026,U+2030,U+2032,U+2033,U+2039,U+203A,U+2044
raised=U+2070,U+2071,U+2074-208E
signs=U+20AC,U+2103,U+2109,U+2113,U+2126,U+212B,U+2190-2193,U+2202,U+2206,U+220F,U+2211,U+2212,U+2215,U+2219,U+221A
maths=U+221D,U+221E,U+2229,U+222A,U+222B,U+2248,U+2260,U+2261,U+2264,U+2265,U+22C5
# No hinting, kerning or ligatures: letters are painted as outlines, one beside the other.
pyftsubset "$from" --output-file=DejaVuSans.ttf --unicodes="$latin,$greek,$marks,$raised,$signs,$maths" \
    --no-hinting --layout-features='' --drop-tables+=GPOS,GSUB,GDEF,kern,FFTM,MATH \
    --name-IDs='*' --notdef-outline --no-glyph-names --canonical-order --no-recalc-timestamp
