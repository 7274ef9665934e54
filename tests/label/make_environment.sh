#!/usr/bin/env bash
# Make a virtual environment with MONAI Label 0.8.5 and this checkout: bash tests/label/make_environment.sh FOLDER
#
# It stays apart from the package's own: pydicom-seg, which MONAI Label imports at its start, fails with pydicom 3, and
# MONAI Label's own list of requirements is left out (--no-deps), since it asks for gigabytes that a server of bundles
# does not import (SAM 2, MLflow, OpenSlide, numpymaxflow), and for numpy 1.
set -euo pipefail
if [ $# -ne 1 ] || [ -e "$1" ]; then
    echo "usage: bash $0 FOLDER, a folder that does not exist yet" >&2
    exit 1
fi
checkout=$(cd "$(dirname "$0")/../.." && pwd)
"${PYTHON:-python3}" -m venv "$1"
pip=("$1/bin/python" -m pip install --quiet)
"${pip[@]}" -e "$checkout" "pydicom<3" SimpleITK
"${pip[@]}" --no-deps monailabel==0.8.5 pydicom-seg==0.4.1 "pynetdicom<3" "dicomweb-client<0.60" jsonschema==3.2.0
"${pip[@]}" "pydicom<3" attrs pyrsistent setuptools six uvicorn fastapi pydantic pydantic-settings python-dotenv \
    python-multipart httpx requests requests-toolbelt schedule timeloop expiringdict expiring_dict cachetools watchdog \
    pynrrd girder-client passlib pyjwt bcrypt shapely filelock psutil google-auth retrying
"$1/bin/python" -c "import monailabel, medsr_monai; print('MONAI Label', monailabel.__version__, 'in $1')"
