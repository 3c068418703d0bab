"""The report's numbers and claims, from reported.json; a test holds them to its figures."""

import json
from pathlib import Path

_CONTENT = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
IMAGES, KAGGLE_COUNTS = _CONTENT["images"], _CONTENT["kaggle_counts"]  # on Kaggle's page
AVERAGE_SIZE = tuple(_CONTENT["average_size"])  # pixels; the report does not say which is the width
VALIDATION_SHARE, PNEUMONIA_SHARE = _CONTENT["validation_share"], _CONTENT["pneumonia_share"]
REPORTED = _CONTENT["runs"]  # of the test images; rows of the confusion matrix are true classes
for _run in REPORTED.values():  # layers, Figs. 3, 8 and 11: layer, output shape, parameters
    if "layers" in _run:
        _run["layers"] = [(kind, tuple(shape), n) for kind, shape, n in _run["layers"]]
    if "confusion" in _run:
        _run["confusion"] = tuple(map(tuple, _run["confusion"]))
(_a, _b), (_c, _d) = REPORTED["02_cnn1_2class"]["confusion"]
REPORTED["02_cnn1_2class"] |= {"sensitivity": _d / (_c + _d), "specificity": _a / (_a + _b)}
CLAIMS = _CONTENT["claims"]  # number: where the notebooks show the evidence, what the report says
